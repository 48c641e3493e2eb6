"""For the environment of MONAI Label, by PYTHONPATH: lets torchvision of PyPI be imported beside torch for the CPU.

That torchvision is built for CUDA. Beside a torch without, its C++ library does not load and two operators that its
Python code names at import do not exist.
"""

import torch

if torch.version.cuda is None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
