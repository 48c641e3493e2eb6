"""Synthetic gliomas in a deformed template brain: four contrasts with labels, and no patient in them.

A case is drawn, not measured. A template brain is deformed, a tumor of three tissues grows in its white matter and
pushes it aside, and the contrasts are drawn from priors wide enough for many scanners. What looks like a tumor and is
none is drawn too: vessels and meninges after contrast, lesions of age, old blood, cysts. The priors come from what MRI
physics and the annotation rules of BraTS say. None is estimated from patients; they were set wider where pictures and
mean signals of 13 cases of BraTS 2018 lay outside, or a network trained on drawn brains failed on them.

The anatomy is the symmetric non-linear template ICBM 2009a (T1, grey and white matter, 1 mm) from the files of
``nilearn`` (BSD-3-Clause). The template: Copyright (C) 1993-2009 Louis Collins, McConnell Brain Imaging Centre,
Montreal Neurological Institute, McGill University; it may be used, copied, modified and distributed for any purpose
where this notice stays. Fonov et al., NeuroImage 47 (2009) S102 and 54 (2011) 313-327.

A phantom (``scripts/sources/phantom.py``) is the quick one: it needs no template and is drawn in milliseconds, at any
voxel size and shape, with each tissue in each case. That is what the demo and the tests want, and no network could
learn real gliomas from it.
"""

from __future__ import annotations

from .anatomy import SPACING_MM
from .cases import SHAPE, DrawGliomad, draw_glioma, synthetic_cases, write_cases
from .contrasts import MODALITIES
from .draws import PARTS

__all__ = [
    "MODALITIES",
    "PARTS",
    "SHAPE",
    "SPACING_MM",
    "DrawGliomad",
    "draw_glioma",
    "synthetic_cases",
    "write_cases",
]
