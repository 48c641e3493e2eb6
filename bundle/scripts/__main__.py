"""The one door to all commands: ``python -m scripts <command> --help``, from inside the bundle's folder."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from .errors import one_sentence

__all__ = ["COMMANDS", "main"]

# By the way that a case goes. argparse and not fire behind each: fire runs a command before it finds an unknown flag.
COMMANDS = {
    "phantom": ("sources.phantom", "draw synthetic cases, quickly"),
    "gliomas": ("sources.gliomas.cases", "draw synthetic cases that a network can learn real gliomas from"),
    "dicom": ("sources.dicom", "one DICOM series to one NIfTI file"),
    "chaos": ("sources.chaos", "the CHAOS challenge as it is distributed, to cases"),
    "preflight": ("checks.preflight", "what is wrong with a folder of cases"),
    "datalist": ("data.datalist", "split a folder of cases by patient"),
    "segment": ("inference.segment", "one case by its files, to one mask"),
    "to_nnunet": ("data.to_nnunet", "cases and their split as nnU-Net wants them"),
    "plan": ("training.plan", "knobs for a data set, from what its files say"),
    "cross_validation": (
        "training.cross_validation",
        "train all folds and score each case by the one that left it out",
    ),
    "score": ("evaluation.score", "score masks that are there already"),
    "calibration": ("evaluation.calibration", "whether probabilities are what they say, and rank cases by their Dice"),
    "subsets": ("evaluation.subsets", "score weights with each subset of their modalities"),
    "small_et": ("evaluation.small_et", "choose the volume below which enhancing tumor is taken for core"),
    "scan_range": ("inference.scan_range", "store with weights what a scan of their training looks like"),
    "picture": ("pictures.picture", "one case as a picture, in colors or outlines"),
    "report": ("pictures.case_report", "cases and their masks as pages to read: pictures, volumes, warnings, origin"),
    "dicom_seg": ("inference.dicom_seg", "a mask to a DICOM segmentation object of its series"),
    "metadata": ("weights.metadata", "metadata.json for the task of other weights, as MONAI Label shows it"),
    "export": ("weights.export", "the network as TorchScript, ONNX and torch.export"),
}


def usage() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(["usage: python -m scripts <command> --help", "", "commands:", *lines])


def main(argv: Sequence[str]) -> str | int | None:
    """Runs a command: its exit code, or the sentence of what is wrong with its input."""
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0 if argv else 2
    name, *arguments = argv
    if name not in COMMANDS:
        return f"Error: there is no command {name}.\n\n{usage()}"
    module, _ = COMMANDS[name]
    try:
        code: int | None = import_module(f".{module}", __package__).main(arguments)
        return code
    except Exception as error:
        sentence = one_sentence(error)
        if sentence is None:
            raise
        return f"Error: {sentence}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
