"""Parameters and multiply-accumulates of the networks of methods, without computing them (Table III of the paper)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from monai.bundle import ConfigParser
from runs import BUNDLE, missing_package, overlay_of
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from scripts.evaluation.report import write_csv
from scripts.files import whole_file
from scripts.networks.fusion import AtrousBranches

HEADING = ["network", "parameters_m", "gmac", "attention_gmac", "paper_parameters_m", "paper_giga"]


class Size(NamedTuple):
    """Parameters in 10^6; multiply-accumulates in 10^9, of convolutions and linear layers, and of attention's products.

    The latter are those of queries with keys and of weights with values. The paper's numbers cannot contain them.
    """

    parameters_m: float
    gmac: float
    attention_gmac: float


def network_of(method: Mapping[str, Any], knobs: Mapping[str, Any]) -> nn.Module:
    """The network of a method, with first weights: what ``network_def`` of ``train.json`` makes under its overlay."""
    parser = ConfigParser()
    parser.read_config(str(BUNDLE / "configs" / "train.json"))
    for name, value in {**knobs, **overlay_of(method)}.items():
        parser.set(value, name)
    network: nn.Module = parser.get_parsed_content("network_def")
    return network


def size_of(network: nn.Module, channels: int, sides: list[int]) -> Size:
    """The size of a network, and its cost for one image."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        network.eval().to("meta")(torch.empty(1, channels, *sides))
    # By module and not by operator: some linear layers run as the operator of attention's products.
    counts, root = counter.get_flop_counts(), type(network).__name__
    counted = sum(
        sum(counts.get(f"{root}.{name}" if name else root, {}).values())
        for name, module in network.named_modules()
        # Branches apply the weights of their convolutions themselves.
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd | AtrousBranches)
    )
    # Two for a multiply-accumulate.
    return Size(parameters / 1e6, counted / 2e9, (sum(counts["Global"].values()) - counted) / 2e9)


def report_sizes(spec: Mapping[str, Any], methods: Mapping[str, Mapping[str, Any]], stem: Path) -> str:
    """Writes ``<stem>.csv`` and ``<stem>.md``, and gives the latter."""
    knobs = {name: spec[name] for name in ("modalities", "label_convention", "roi_size")}
    rows = []
    for title, row in spec["rows"].items():
        paper = row.get("paper", {})
        printed = [f"{paper[name]:.2f}" if name in paper else "" for name in ("parameters_m", "giga")]
        if package := missing_package(methods[row["method"]]):
            rows.append([title, f"not counted: needs {package}", "", "", *printed])
            continue
        network = network_of(methods[row["method"]], knobs)
        size = size_of(network, len(spec["modalities"]), spec["roi_size"])
        rows.append([title, *(f"{value:.2f}" for value in size), *printed])
    write_csv(stem.with_suffix(".csv"), [HEADING, *rows])
    lines = [
        "| Network | Parameters, M | GMAC of convolutions and linear layers | GMAC of attention | "
        "Paper: parameters, M | Paper: GFLOPs |",
        "|---|---:|---:|---:|---:|---:|",
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    text = "\n".join(lines) + "\n"
    with whole_file(stem.with_suffix(".md")) as temporary:
        temporary.write_text(text)
    return text
