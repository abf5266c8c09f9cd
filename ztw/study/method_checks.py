"""Check the methods of a study: references to other rows, and keys that do not fit together.

Every check raises ZtwError in one line: the key, the bad value and what is allowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ztw.catalogue.parts import has_threshold, is_fitted, known
from ztw.errors import ZtwError
from ztw.study.settings import MethodKeys, MethodSettings, Study
from ztw.study.validate import as_written, did_you_mean


def check_method(study: Study, name: str) -> None:
    """Check one method of a study."""
    method, sets = study.methods[name], list(study.exit_sets)
    where = "logits.sets" if study.logits else "ics.sets"
    if method.int8:
        _check_int8(study, name)
    if method.static is not None:
        return _check_static(study, name)
    for key in own_training(method):
        home = "backbone" if key == "input_size" else "ics.sets"
        raise ZtwError(
            f"methods.{name}.{key}: only a static row trains a network of its own; set it under {home}, or leave"
            " it out"
        )
    if method.cascade_of:
        _check_cascade(study, name, method.cascade_of)
    elif not method.ics:
        raise ZtwError(f"methods.{name}: the key 'ics' is missing (or 'static', or 'cascade_of')")
    else:
        check_listed(f"methods.{name}.ics", [method.ics], sets, where)
    if method.ensemble is not None:
        check_known(f"methods.{name}.ensemble", method.ensemble, list(study.ensembles.sets), ", null")
    check_known(f"methods.{name}.rule", method.rule, known("rule"))
    check_known(f"methods.{name}.thresholds", method.thresholds, known("thresholds"))
    if method.rule == "fixed_exit":
        _check_fixed_exit(study, name)
    if not has_threshold(method.rule) and method.thresholds != "shared":
        raise ZtwError(
            f"methods.{name}.thresholds: {method.thresholds!r}: the rule {method.rule} has no threshold;"
            " leave it out"
        )
    if is_fitted(method.rule) and method.thresholds == "risk_controlled":
        raise ZtwError(
            f"methods.{name}.thresholds: risk_controlled: the rule {method.rule} is fitted on the same images, so"
            " there is no guarantee; use another rule or other thresholds"
        )


def _check_static(study: Study, name: str) -> None:
    method = study.methods[name]
    if study.logits:
        check_listed(f"methods.{name}.static", [str(method.static)], list(study.exit_sets), "logits.sets")
        for key in own_training(method):
            raise ZtwError(f"methods.{name}.{key}: has no meaning in a study from logits; leave it out")
    for key, field in MethodKeys.model_fields.items():
        if key not in ("static", "int8", "distillation") and getattr(method, key) != field.default:
            raise ZtwError(
                f"methods.{name}.{key}: has no meaning with static (a static network has one exit); leave it out"
            )
    others = [other.static for other in study.methods.values() if not own_training(other)]
    if own_training(method) and name in (*study.archs, *others):
        raise ZtwError(
            f"methods.{name}: has a training of its own, and {name} is a network of this study already; choose another"
            " name for the method"
        )
    _check_teachers(study, name)


def own_training(method: MethodSettings) -> list[str]:
    """List the keys that a static row has for a training of its own."""
    return [*method.own_training, *(["distillation"] if method.distillation else [])]


def _check_teachers(study: Study, name: str) -> None:
    """Check that a row learns from a static row that does not learn from it in turn."""
    learners, row = [name], study.methods[name]
    while row.distillation is not None:
        label, teacher = f"methods.{learners[-1]}.distillation.teacher", row.distillation.teacher
        check_known(label, teacher, _float_statics(study), advice="; a teacher is a static row, not in int8")
        if teacher in learners:
            raise ZtwError(
                f"{label}: {teacher!r} learns from {learners[-1]!r} in turn; choose another teacher"
            )
        learners.append(teacher)
        row = study.methods[teacher]


def _check_cascade(study: Study, name: str, members: tuple[str, ...]) -> None:
    label = f"methods.{name}"
    if study.methods[name].ics:
        raise ZtwError(
            f"{label}.ics: has no meaning with cascade_of, whose networks have no ICs; leave it out"
        )
    for member in members:
        check_known(
            f"{label}.cascade_of",
            member,
            _float_statics(study),
            advice="; a member is a static row, not in int8; set int8 for the cascade",
        )
    networks = [study.network_of(member) for member in members]
    if len(set(networks)) < len(networks):
        raise ZtwError(
            f"{label}.cascade_of: {as_written(members)} has a network twice; list each network once"
        )


def _float_statics(study: Study) -> list[str]:
    """List the static rows without int8: rows that other rows can name."""
    return [name for name, method in study.methods.items() if method.static and not method.int8]


def _check_int8(study: Study, name: str) -> None:
    label = f"methods.{name}.int8: true"
    if study.logits:
        raise ZtwError(f"{label}: has no meaning in a study from logits; leave it out")
    if not study.latency.batch_sizes:
        return
    if "onnxruntime" not in study.latency.runtimes:
        raise ZtwError(
            f"{label}: is timed in ONNX Runtime only; add onnxruntime to latency.runtimes, or set latency.batch_sizes"
            " to []"
        )
    if study.device.startswith("cuda"):
        raise ZtwError(
            f"{label}: is timed on the CPU only, but device is {study.device}; set device to cpu, or"
            " latency.batch_sizes to []"
        )


def _check_fixed_exit(study: Study, name: str) -> None:
    method = study.methods[name]
    if method.ensemble:
        raise ZtwError(
            f"methods.{name}.ensemble: has no meaning with the rule fixed_exit, which computes one exit; leave it out"
        )
    if study.logits:
        raise ZtwError(
            f"methods.{name}.rule: fixed_exit: files of logits have no costs of a network cut after an exit; give the"
            " cut network as a set of its own"
        )


def check_known(label: str, name: str, known: Sequence[str], or_else: str = "", advice: str = "") -> None:
    """Check a name. or_else: other allowed values, for the error."""
    if name not in known:
        listed = f"{', '.join(known) or 'none'}{or_else}{did_you_mean(name, known)}{advice}"
        raise ZtwError(f"{label}: {name!r} is unknown; known: {listed}")


def check_listed(label: str, names: Iterable[str], listed: Sequence[str], where: str) -> None:
    """Check that names are among those that the study lists; where: the key with the list, for the error."""
    for name in names:
        if name not in listed:
            raise ZtwError(
                f"{label}: {name!r} is not in {where}; listed: {', '.join(listed)}{did_you_mean(name, listed)}"
            )
