"""The rows of a comparison in words: the table's cells, its notes, question, answer and caveats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cnnf_brain.networks import BEYOND, CHANGED, UNTRAINED
from cnnf_brain.predictivity.hierarchy import HIERARCHICAL, supported
from cnnf_brain.predictivity.metrics import PLS, described
from cnnf_brain.predictivity.scores import SMALL_FOLD
from cnnf_brain.predictivity.statistics import LEVEL, OVER_IMAGES, PERMUTATION, RESAMPLED, TESTS, WELCH
from cnnf_brain.report.runs import about_the_code, join
from cnnf_brain.types import LayerAt

WIDEST = 28  # letters of a name in the table
FEW_SITES = 30
DIMENSION = "effective_dimension"
SHOWN = {RESAMPLED: "resampled t", PERMUTATION: "permutation", OVER_IMAGES: "bootstrap", HIERARCHICAL: "over animals"}
SHOWN[WELCH] = "Welch"  # in the table, valid ones first; the files have all
DOES = {"above": "better", "below": "worse", "undecided": "neither clearly better nor worse"}  # a verdict in the answer


def cells(content: dict[str, Any]) -> tuple[list[str], list[list[str]], list[str]]:
    """Head, rows and notes of the table of a summary."""
    entries = content["evaluations"]
    names = {t["name"] for e in entries for t in e.get("tests", [])}
    tests = [name for name in SHOWN if name in names]
    top1 = accuracies(content)
    small = any(e["median_r_pooled_predictions"] is not None for e in entries)
    ceilings = any(bound(e) is not None for e in entries)
    of_r = any(e["ceiling"] is not None for e in entries)
    sources = short_names([e["source"] for e in entries])
    columns = {"pooled r": small, "ceiling": ceilings, "r²/c": of_r, "(r/c)²": of_r, "top-1": bool(top1)}
    columns |= {"difference [95%]": bool(tests)}
    head = ["region", "recordings", "network", "weights", "layer", "it"]
    head += ["metric"] * _named(entries) + [f"{score_name(entries)} [95%]"]
    head += [name for name, there in columns.items() if there] + [_test_head(name) for name in tests]
    rows = [_row(e, sources[e["source"]], columns, tests, top1) for e in entries]
    if _named(entries):
        rows = [[*row[:6], e["metric"], *row[6:]] for row, e in zip(rows, entries, strict=True)]
    return head, rows, _notes(content, tests, small, sources)


def _named(entries: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the table names the metric of its rows: not where all are PLS."""
    return any(e["metric"] != PLS for e in entries)


def score(e: Mapping[str, Any]) -> tuple[float | None, Sequence[float | None]]:
    """What an entry scores and its 95% interval: the median r, over sites, or the agreement, for new images."""
    name = "agreement" if "agreement" in e else "median_r"
    return e[name], e[f"{name}_interval"]


def score_name(entries: Sequence[Mapping[str, Any]]) -> str:
    """What ``score`` gives, in words."""
    kinds = {"agreement" in e for e in entries}
    return "median r or agreement" if len(kinds) > 1 else "agreement" if True in kinds else "median r"


def bound(e: Mapping[str, Any]) -> float | None:
    """What noise or single subjects leave of a perfect score: the root of the ceiling (it bounds r²), or the lower bound."""
    if e.get("agreement_ceiling"):
        found: float = e["agreement_ceiling"][0]
        return found
    return None if e["ceiling"] is None else math.sqrt(max(0.0, e["ceiling"]))


def panel(e: Mapping[str, Any], source: str) -> str:
    """What stands over an entry's group: its source, and its metric where that is not PLS."""
    return _labelled(e, source) + ("" if e["metric"] == PLS else f", {e['metric']}")


def _labelled(e: Mapping[str, Any], source: str) -> str:
    """A source that says where it is simulated."""
    return source + (" (simulated)" if e["simulated"] and "simulated" not in source else "")


def accuracies(content: dict[str, Any]) -> dict[tuple[str, str, str], float]:
    """Top-1 by network, weights and iteration."""
    return {(a["network"], a["weights"], str(a["iteration"])): a["top1"] for a in content["accuracy"]}


def _test_head(name: str) -> str:
    return f"{SHOWN.get(name, name)} p" + ("" if TESTS[name].valid else " ⚠")


def _row(
    e: dict[str, Any],
    source: str,
    columns: dict[str, bool],
    tests: list[str],
    top1: dict[tuple[str, str, str], float],
) -> list[str]:
    layer, iteration = layer_and_iteration(e["layer"])
    name = f"{e['network']}, control" if e["role"] == "control" else e["network"]
    row = [e["region"], _labelled(e, source), name, cut(e["weights"], WIDEST), layer, iteration]
    value, interval = score(e)
    row.append((_number(value) or "undefined") + _interval(interval))
    share = top1.get((e["network"], e["weights"], iteration))
    cells = {
        "pooled r": _number(e["median_r_pooled_predictions"]),
        "ceiling": "–".join(dict.fromkeys(map(_number, e.get("agreement_ceiling") or ()))) or _number(e["ceiling"]),
        "r²/c": _number(e["r2/ceiling"]),
        "(r/c)²": _number(e["(r/ceiling)2"]),
        "top-1": "" if share is None else f"{100 * share:.2f} %",
        "difference [95%]": _shown_difference(e),
    }
    row += [cells[name] for name, there in columns.items() if there]
    found = {t["name"]: t for t in e.get("tests", [])}
    return row + [_shown_test(found.get(name)) for name in tests]


def _shown_difference(e: dict[str, Any]) -> str:
    if "difference" not in e:
        return "baseline" if e["role"] == "baseline" else ""
    return (_number(e["difference"], "+") or "undefined") + _interval(e["difference_interval"], "+")


def _shown_test(test: dict[str, Any] | None) -> str:
    """p after Holm's adjustment; of the paper's test t and degrees of freedom as well, since the paper prints them."""
    if test is None or test["p_holm"] is None:
        return ""
    p = f"{test['p_holm']:.2g}"
    if test["name"] != WELCH or test["statistic"] is None or test["df"] is None:
        return p
    return f"{p}; t({test['df']:.1f}) = {test['statistic']:.2f}"


def _number(value: float | None, sign: str = "") -> str:
    return "" if value is None else f"{value:{sign}.3f}"


def _interval(ends: Sequence[float | None], sign: str = "") -> str:
    return "" if None in ends else f" [{_number(ends[0], sign)}, {_number(ends[1], sign)}]"


def _notes(content: dict[str, Any], tests: list[str], small: bool, sources: dict[str, str]) -> list[str]:
    options, entries = content["options"], content["evaluations"]
    notes = _about_metrics(options, entries, bool(tests))
    notes += [*feedback_notes(content), *content["notes"]]
    if content["simulated"]:
        notes.insert(
            0, "SIMULATED recordings: the sites are computed, not measured. Nothing here says anything about a brain."
        )
    if content["accuracy"]:
        notes.append(f"top-1: {'; '.join(dict.fromkeys(a['source'] for a in content['accuracy']))}.")
    if options["pca"]:
        notes.append(
            f"Features were reduced to {options['pca']} principal components, or all that there are, fitted on all images (without "
            "responses)."
        )
    if options.get("unit_norm"):
        notes.append("The features of each image were scaled to norm 1.")
    notes += _about_dimensions(entries)
    if options["select"] == "animal":
        notes.append("chosen on: the layer and iteration that do best for that animal, scored on the sites of all others.")
    elif options["select"]:
        notes.append("nested: in each split, the layer and iteration that do best within its training images.")
    notes += _about_tests(content, tests)
    if small:
        notes.append(
            f"Folds hold fewer than {SMALL_FOLD} test images, so that r within a fold is noisy; pooled r, over the held-out "
            "predictions of all folds together, stands beside it."
        )
    notes += _about_ceilings(entries)
    return notes + _about_sites(entries, sources)


def _about_metrics(options: Mapping[str, Any], entries: Sequence[Mapping[str, Any]], tested: bool) -> list[str]:
    """What was scored and how its differences are to be read, for r and for agreement."""
    names: dict[bool, list[str]] = {}
    for e in entries:
        names.setdefault("agreement" in e, []).append(e["metric"])
    notes = []
    if False in names:
        model = "one PLS model per site" if options["per_site"] else "PLS over all sites at once"
        known = {name: described(name) for name in names[False]}
        known |= {PLS: f"{model}, {options['components']} components"} if PLS in known else {}
        about = [text if known.keys() == {PLS} else f"{name}: {text}" for name, text in known.items()]
        splits = {"kfold": "ten true folds", "brainscore": "Brain-Score's ten shuffle splits"}[options["splits"]]
        notes.append(
            f"Median over sites of Pearson's r on held-out images (the mean over splits of each site); {'; '.join(about)}, "
            f"{splits}. it: iteration, 0 is the first feedforward pass. Its interval: 95% bootstrap over sites."
        )
        if tested:
            notes.append(
                "difference: median over sites of the difference in r to the baseline; its 95% interval is that of the permutation "
                "test and speaks of new images (docs/statistics.md)."
            )
    if True in names:
        known = {name: described(name) for name in names[True]}
        notes.append(
            f"Agreement of a layer's dissimilarities of images with those of the recordings: "
            f"{'; '.join(f'{name}: {text}' for name, text in known.items())}. It and its difference have the 95% interval of the "
            "bootstrap over images, which speaks of new images; r and agreement are not on one scale. it: iteration."
        )
    return notes


def _about_ceilings(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = []
    if any(e["ceiling"] is not None for e in entries):
        notes.append(
            "ceiling: median over sites of the split-half reliability. r²/c (Brain-Score since 2026) and (r/c)² (before) in "
            "Brain-Score's order: median over sites in each split, mean over splits, then divided by the ceiling."
        )
    elif not all("agreement" in e for e in entries):
        notes.append("No ceiling: these recordings hold no single repeats.")
    if any(e.get("agreement_ceiling") for e in entries):
        notes.append(
            "ceiling of an agreement: what a perfect model could reach with responses that hold trial noise; with several subjects "
            "lower and upper bound, leaving one out in turn."
        )
    return notes


def _about_dimensions(entries: Sequence[dict[str, Any]]) -> list[str]:
    """The rows of the smallest and of the largest effective dimension; nothing where none is known."""
    known = [e for e in entries if e.get(DIMENSION) is not None]
    if not known:
        return []
    low, high = (pick(known, key=lambda e: e[DIMENSION]) for pick in (min, max))
    ends = " to ".join(f"{e[DIMENSION]:.1f} ({e['network']} {e['layer']}, {e['region']})" for e in (low, high))
    return [f"Effective dimension of the features (participation ratio of K): {ends}; summary.json has that of every row."]


def feedback_notes(content: dict[str, Any]) -> list[str]:
    """Whether the feedback that was run is one that was trained, in a sentence for each state."""
    states = dict.fromkeys((e["network"], e["weights"], e["feedback"]) for e in content["evaluations"] if e["feedback"])
    untrained = [f"{name} [{weights}]" for name, weights, state in states if state == UNTRAINED]
    changed = [f"{name} [{weights}]" for name, weights, state in states if state == CHANGED]
    found = []
    if untrained:
        found.append(
            f"FEEDBACK UNTRAINED: {'; '.join(untrained)}. These weights were never trained with feedback: the rows say what it "
            "does to a plain CNN, and nothing about the paper's trained network."
        )
    if changed:
        found.append(f"Feedback runs with other settings than it was trained with: {'; '.join(changed)}.")
    beyond = [f"{name} [{weights}], {state}" for name, weights, state in states if state.startswith(BEYOND.split("{")[0])]
    if beyond:
        found.append(f"Feedback runs for more iterations than it was trained for: {'; '.join(beyond)}.")
    return found


def _about_tests(content: dict[str, Any], tests: list[str]) -> list[str]:
    if not tests:
        return []
    sizes = sorted(set(content["family_size"].values()))
    rows = f"{' or '.join(map(str, sizes))} row{'s' * (sizes != [1])}"
    animals = {t["n"] for e in content["evaluations"] for t in e.get("tests", []) if t["name"] == HIERARCHICAL}
    about = "; ".join(f"{_test_head(name)} = {name}, {TESTS[name].why}" for name in tests)
    of_r = any(name != OVER_IMAGES for name in tests)
    unsound = "⚠: not to be believed for the question whether new images would give the same answer; the paper prints it"
    return [
        f"p-values are Holm-adjusted over the {rows} of this table with a difference, for each test apart."
        + (f" {unsound} (docs/statistics.md)." if WELCH in tests else "")
        + f" {about}."
        + (" Tests over sites, which are not valid for new images either, are in summary.json." if of_r else ""),
        *(supported(n) for n in sorted(animals)),
    ]


def _about_sites(entries: Sequence[dict[str, Any]], sources: dict[str, str]) -> list[str]:
    notes = []
    apart = [e for e in entries if not e["pooled"]]
    left_out = sorted({f"{e['region']} of {sources[e['source']]}: {name}" for e in apart for name in e["excluded_sites"]})
    animals = [e["subjects"][0] for e in entries if e["pooled"] and len(e["subjects"]) == 1]
    if animals:
        notes.append(f"pooled {join(list(dict.fromkeys(animals)))}: all sites of that animal, in every source.")
    if left_out:
        more = " …" if len(left_out) > 5 else ""
        were = "site was" if len(left_out) == 1 else "sites were"
        notes.append(f"{len(left_out)} {were} excluded: {'; '.join(left_out[:5])}{more}.")
    return notes + _undefined(entries)


def question(entries: list[dict[str, Any]]) -> str:
    """What was asked, from the rows."""
    models, baselines = (
        list(dict.fromkeys(f"{e['network']} [{e['weights']}]" for e in entries if e["role"] == role))
        for role in ("model", "baseline")
    )
    regions = list(dict.fromkeys(e["region"] for e in entries))
    predict = "agree with" if all("agreement" in e for e in entries) else "predict"
    simulated = "simulated " if any(e["simulated"] for e in entries) else ""
    if not baselines or not models:
        return f"How well do the features of {join(models or baselines)} {predict} {simulated}{join(regions)} sites?"
    return f"Do the features of {join(models)} {predict} {simulated}{join(regions)} sites better than those of {join(baselines)}?"


def answer(entries: Sequence[Mapping[str, Any]]) -> str:
    """What was found in each region, by the tests that are valid for new images, and which these are."""
    found = [e for e in entries if e["role"] == "model" and e.get("difference") is not None]
    if not found:
        return "No row has a difference to a baseline: the table stands alone."
    regions = [[e for e in found if e["region"] == name] for name in dict.fromkeys(e["region"] for e in found)]
    tested = {test["name"] for e in found for test in e["tests"]}
    valid = join([name for name in SHOWN if TESTS[name].decides and name in tested])
    rule = f"Better and worse are said where every test that is valid for new images ({valid}) has p < {LEVEL}"
    return f"Compared with the baseline, {'; '.join(map(_found, regions))}. {rule} after Holm's adjustment."


def _found(rows: Sequence[Mapping[str, Any]]) -> str:
    """How the models do in one region, in all its rows or in how many, and the range of the differences."""
    region = "simulated " * any(e["simulated"] for e in rows) + rows[0]["region"]
    who = "the models do" if len({(e["network"], e["weights"]) for e in rows}) > 1 else "the model does"
    verdicts = [e["verdict"] for e in rows]
    share = {word: verdicts.count(name) for name, word in DOES.items() if name in verdicts}
    does = [word + (f" in {n} of {len(rows)} rows" if n < len(rows) else "") for word, n in share.items()]
    names = dict.fromkeys(score_name([e]) for e in rows)
    kinds = {name: [e["difference"] for e in rows if score_name([e]) == name] for name in names}
    by = [f"{' to '.join(dict.fromkeys(f'{end(d):+.3f}' for end in (min, max)))} in {kind}" for kind, d in kinds.items()]
    return f"in {region} {who} {join(does)} ({join(by)})"


def caveats(summary: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    """What the comparison does not show."""
    entries = summary["evaluations"]
    found = [*_about_recordings(summary), *_about_networks(run)]
    if any(not t["valid"] for e in entries for t in e.get("tests", [])):
        found.append("Tests marked ⚠ do not answer whether new images would give the same result (docs/statistics.md).")
    found.append("One set of weights for each network: how much another training run would differ is not measured here.")
    return found + about_the_code(dict(run))


def _about_recordings(summary: Mapping[str, Any]) -> list[str]:
    entries, found = summary["evaluations"], []
    if summary["simulated"]:
        found.append("Simulated sites are computed, not recorded: nothing here says anything about a brain.")
    if any(e["median_r_pooled_predictions"] is not None for e in entries):
        fewest = min(e["images"] for e in entries)
        found.append(
            f"Too few images: a split tests on fewer than {SMALL_FOLD} (of {fewest}), so that r within a split is noisy."
        )
    small = sorted({f"{e['region']} of {e['source']} ({e['sites']})" for e in entries if 0 < e["sites"] < FEW_SITES})
    if small:
        found.append(f"Fewer than {FEW_SITES} sites: {'; '.join(small)}. Intervals over so few sites are rough.")
    if all(bound(e) is None for e in entries):
        found.append("No ceiling: without repeats of the images, how much of a response could be predicted is not known.")
    return found + _undefined(entries)


def _about_networks(run: Mapping[str, Any]) -> list[str]:
    found = []
    headless = [network["name"] for network in run["networks"] if network["headless"]]
    if headless:
        found.append(f"{join(headless)}: weights without a classifier; feedback starts from the top feature map.")
    sizes = sorted({network["image_size"] for network in run["networks"]})
    if len(sizes) > 1:
        found.append(f"The networks saw images of different sizes ({', '.join(map(str, sizes))} pixels).")
    return found


def _undefined(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sites without an r, in every split or in some."""
    found = []
    undefined = max(e["undefined_sites"] for e in entries)
    if undefined:
        found.append(f"Up to {undefined} sites have no r in a row, since what is predicted for them is constant.")
    some = max(e["sites_undefined_in_some_folds"] for e in entries)
    if some > undefined:
        found.append(
            f"Up to {some} sites of a row are constant, or predicted as a constant, in some folds: their r is the mean over the "
            "others."
        )
    return found


def short_names(sources: Sequence[str]) -> dict[str, str]:
    """Each source by the end of its path, as much of it as tells it from the others."""
    distinct = list(dict.fromkeys(sources))
    for depth in range(1, max(source.count("/") for source in distinct) + 2):
        found = {source: cut("/".join(source.rstrip("/").split("/")[-depth:]), WIDEST * depth) for source in distinct}
        if len(set(found.values())) == len(distinct):
            return found
    return {source: source for source in distinct}


def network_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What each row's ``network`` is called in a figure: its name, with its ``weights`` where one name has several."""
    pairs = {(row["network"], row["weights"]) for row in rows}
    several = len({network for network, _ in pairs}) < len(pairs)
    return [f"{row['network']} [{row['weights']}]" if several else str(row["network"]) for row in rows]


def weights_named(rows: Sequence[Mapping[str, Any]]) -> str:
    """Which weights each network has, in a sentence."""
    found = dict.fromkeys((row["network"], row["weights"]) for row in rows)
    return "Weights: " + "; ".join(f"{network}: {weights}" for network, weights in found) + "."


def cut(text: str, longest: int) -> str:
    """``text``, its beginning left out where it is longer."""
    return text if len(text) <= longest else "…" + text[1 - longest :]


def layer_and_iteration(layer: str) -> tuple[str, str]:
    """A layer's name and its iteration as the table shows them; no iteration where it was chosen on training folds."""
    if "@" not in layer:
        return layer, ""
    at = LayerAt.parse(layer)
    return at.layer + (" feedback" if at.feedback else ""), "+".join(str(part.iteration) for part in at.parts)
