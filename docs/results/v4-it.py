"""Tables of docs/results/v4-it.md, from the runs of docs/results/v4-it.sh.

python docs/results/v4-it.py results          # every metric, from the saved comparisons
python docs/results/v4-it.py results unique   # unique variance of the iterations too, from the cached Grams
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

import cnnf_brain as cb
from cnnf_brain.gram import layer_grams
from cnnf_brain.predictivity.crossval import make_splits
from cnnf_brain.predictivity.kernel import whole
from cnnf_brain.predictivity.ridge import UniqueVariance, unique_variance
from cnnf_brain.types import LayerAt

SEEDS = {"alexnet": (0,), "vgg16": (0,)}
ITERATIONS = {"alexnet": (1, 2), "vgg16": (1,)}
SETS = {
    "V4": ("", "V4, ten sessions, 492 sites of two animals"),
    "IT": ("", "IT, 119 neurons of two animals, 64 shapes"),
    "monkey": ("-monkey", "IT, dissimilarities of 674 neurons of two monkeys, 92 objects"),
    "human": ("-human", "IT, dissimilarities of four human subjects (fMRI), 92 objects"),
}
KEPT = ["source", "role", "layer", "iteration", "metric", "difference", "verdict"]
METRICS = ("pls", "ridge", "rsa", "cka", "cosine_cov")


def rows(results: Path, name: str, which: str) -> pd.DataFrame:
    """All rows of a set of recordings in a run: those over all its sources."""
    suffix, region = SETS[which][0], "V4" if which == "V4" else "IT"
    found = [cb.Comparison.load(results / f"v4-it-{name}{suffix}").table()]
    if which == "V4":
        found.append(cb.Comparison.load(results / f"v4-it-{name}-whitened").table())
    tables = [table[table["region"] == region] for table in found]
    pooled = [table[table["source"] == "pooled"] if (table["source"] == "pooled").any() else table for table in tables]
    scores = [table["median_r"].combine_first(table["agreement"]).astype(float) for table in pooled]
    kept = [table[KEPT].assign(score=score) for table, score in zip(pooled, scores, strict=True)]
    return pd.concat([table[~table["source"].str.startswith("pooled ")] for table in kept])


def one(table: pd.DataFrame, metric: str, layer: str, role: str, iteration: int) -> pd.Series:
    """The row of a network of a role, in a layer at an iteration."""
    mine = table.query("metric == @metric and layer == @layer and role == @role and iteration == @iteration")
    assert len(mine) == 1, (metric, layer, role, iteration, len(mine))
    return mine.iloc[0]


def change(found: list[pd.Series]) -> str:
    """The mean difference over seeds, bold where the tests for new images call it lower, or higher, in all of them."""
    calls = {row["verdict"] for row in found}
    text = f"{np.mean([row['difference'] for row in found]):+.3f}"
    return f"**{text}**" if calls in ({"below"}, {"above"}) else text


def metrics(results: Path, which: str) -> Iterator[str]:
    """The table of a set: the CNN's score, and what the iterations change, trained (means over seeds) and untrained."""
    yield f"\n**{SETS[which][1]}**\n"
    yield "| network, layer | metric | CNN | first pass | iteration 1 | iteration 2 | untrained 1 | untrained 2 |"
    yield "|---|---|---:|---:|---:|---:|---:|---:|"
    for model, iterations in ITERATIONS.items():
        trained = [rows(results, f"{model}-seed{seed}", which) for seed in SEEDS[model]]
        untrained = rows(results, f"{model}-untrained", which)
        for layer in dict.fromkeys(trained[0]["layer"]):
            for metric in [metric for metric in METRICS if metric in set(trained[0]["metric"])]:
                base = np.mean([one(t, metric, layer, "baseline", 0)["score"] for t in trained])
                cells = [change([one(t, metric, layer, "control", 0) for t in trained])]
                cells += [change([one(t, metric, layer, "model", i) for t in trained]) for i in iterations]
                cells += [""] * (3 - len(cells))
                cells += [change([one(untrained, metric, layer, "model", i)]) for i in iterations]
                yield f"| {model}, {layer} | {metric} | {base:.3f} | " + " | ".join([*cells, "", ""][:5]) + " |"


NETWORKS = {
    "alexnet": ("runs/alexnet-cnnf-seed{}/model.safetensors", "runs/alexnet-start/model.safetensors", 128),
    "vgg16": ("runs/vgg16-cnnf-seed{}/model.safetensors", "runs/vgg16-start/model.safetensors", 64),
}
UNTRAINED = {"alexnet": "features.2", "vgg16": "features.9"}  # targets of the untrained feedback
LAYERS = {"alexnet": {"V4": "features.8", "IT": "features.12"}, "vgg16": {"V4": "features.16", "IT": "features.23"}}


def networks(model: str) -> Iterator[tuple[str, cb.Network]]:
    """The networks with feedback of an architecture, trained and not."""
    trained, start, size = NETWORKS[model]
    feedback = {"target": UNTRAINED[model], "step": 1.0, "match_norm": True, "match_layers": True}
    last = ITERATIONS[model][-1]
    yield "untrained", cb.load_network(model, start, iterations=last, image_size=size, feedback=feedback)
    for seed in SEEDS[model]:
        yield f"seed {seed}", cb.load_network(model, trained.format(seed), image_size=size, iterations=last)


def unique(recordings: dict[str, cb.Recordings]) -> Iterator[str]:
    """What iterations predict beyond the first pass of the same network, by banded ridge."""
    yield "\n| network, layer@iteration | region | r² of the first pass | of both | unique r² | sites above 0 | p |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for model, iterations in ITERATIONS.items():
        for name, network in networks(model):
            for region, layer in LAYERS[model].items():
                source, ats = recordings[region], [LayerAt(layer, i) for i in (0, *iterations)]
                grams = layer_grams(network, source.images, ats, batch_size=32, progress=False)
                first, *later = (whole(grams[at].values) for at in ats)
                splits = make_splits("kfold", range(len(source.images)))
                for i, k in zip(iterations, later, strict=True):
                    found = unique_variance(first, k, source.responses, splits)
                    yield f"| {model} {name}, {layer}@{i} | {region} | {summary(found)} |"


def summary(found: UniqueVariance) -> str:
    """Medians over the sites of a source; sites whose interval is above 0; p of the test that both predict more."""
    first, both, more = (np.median(values) for values in (found.first, found.both, found.unique))
    return f"{first:.3f} | {both:.3f} | {more:+.4f} | {np.mean(found.low > 0):.0%} | {found.test.p:.2g}"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for one_set in SETS:
        print("\n".join(metrics(folder, one_set)))
    if sys.argv[2:] == ["unique"]:
        v4 = cb.load_recordings("../shared/data/V4_compact_models", region="V4", session="210325")
        it = cb.load_recordings("results/it_shapes.nc", region="IT")
        for line in unique({"V4": v4, "IT": it}):
            print(line, flush=True)
