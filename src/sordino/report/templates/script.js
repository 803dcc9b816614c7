const table = document.getElementById("clips");
const rows = [...table.tBodies[0].rows];
const find = document.getElementById("find"), order = document.getElementById("order");
const count = document.getElementById("count");
function show() {
  const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
  const [key, sign] = order.value.split(" ");
  let shown = 0;
  rows.sort((a, b) => sign * (a.dataset[key] - b.dataset[key]));
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
    shown += !row.hidden;
  }
  table.tBodies[0].append(...rows);
  count.textContent = shown + " of " + rows.length;
}
find.addEventListener("input", show);
order.addEventListener("change", show);
document.querySelector(".find").hidden = false;
show();
