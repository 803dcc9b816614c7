"""Runs with another version of transformers: python older_transformers.py job.json. What it makes of checkpoints.

job: [{class, model, inputs, logits}], inputs and logits as .safetensors files, of which it writes the last. Prints the
version and, for each, the weights that are missing and those that have no place, or why it fails, as JSON.
"""

import json
import sys
from pathlib import Path

if __name__ == "__main__":
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    rows = []
    for case in json.loads(Path(sys.argv[1]).read_text()):
        kind = getattr(transformers, case["class"])
        try:
            model, info = kind.from_pretrained(case["model"], dtype=torch.float32, output_loading_info=True)
        except Exception as error:
            rows.append({"error": f"{type(error).__name__}: {error}"})
            continue
        model.eval()
        with torch.no_grad():
            logits = model(**load_file(case["inputs"]), use_cache=False).logits
        save_file({"logits": logits.contiguous()}, case["logits"])
        rows.append({name: sorted(info[name]) for name in ("missing_keys", "unexpected_keys")})
    print(json.dumps({"version": transformers.__version__, "rows": rows}))
