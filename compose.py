"""Composes conf/ and the command line into one config, and turns every slip of a group or key into one clear line.

Hydra's own answers advise `+key=value`, which it then takes unread; here a key is added first and refused by its type.
Knows Hydra and conf/, and nothing of what the settings are about.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose as hydra_compose
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from settings import SettingsError, Slip, did_you_mean

CONF = Path(__file__).parent / "conf"
SPOKEN = "command line"


class Composed(NamedTuple):
    """One composed config and where its parts come from."""

    values: DictConfig  # without Hydra's own node
    files: Mapping[str, str]  # group -> its file, such as market -> conf/market/paper.yaml
    spoken: frozenset[str]  # keys that the command line has set

    def blame(self, slips: Sequence[Slip]) -> SettingsError:
        """Make the error for `slips`; one in a key that the command line has set names the command line, not the file."""
        prefixes = {file: f"{group}." for group, file in self.files.items()}
        out = []
        for slip in slips:
            key = prefixes.get(slip.place, "") + slip.key
            said = any(key == spoken or key.startswith((f"{spoken}.", f"{spoken}[")) for spoken in self.spoken)
            out.append(Slip(SPOKEN, key, slip.rule) if said else slip)
        return SettingsError(*out)


def compose(overrides: Sequence[str] = (), config: str = "config", conf: Path = CONF) -> Composed:
    """Compose one config from `overrides` (GROUP=OPTION, KEY=VALUE), checking groups, not yet types.

    errors   SettingsError
    """
    return next(compose_each(overrides, config, conf, multirun=False))


def compose_each(
    overrides: Sequence[str], config: str = "config", conf: Path = CONF, *, multirun: bool, more: Path | None = None
) -> Iterator[Composed]:
    """Compose the configs of a multirun: the first of all choices, then each other choice once, beside the first of the rest.

    more     a second folder of groups and files
    errors   SettingsError
    """
    if more and not more.is_dir():
        raise SettingsError(Slip(SPOKEN, "--config-dir", f"must be a folder, got {more}"))
    version.setbase("1.3")
    was = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    searchpath = create_config_search_path(str(conf.resolve()))
    if more:
        searchpath.prepend("command-line", f"file://{more.resolve()}", SearchPathQuery(provider="schema"))
    try:
        Hydra.create_main_hydra2("compose", searchpath)
        parsed = _parse(overrides, multirun, GlobalHydra.instance().config_loader())
        for job in _jobs(parsed, multirun):
            yield _compose_one(job, config, [folder for folder in (conf, more) if folder])
    finally:
        GlobalHydra.instance().hydra = was


def resumed(overrides: Sequence[str]) -> list[str]:
    """Put the overrides of the run that `resume=PATH` names before `overrides`, which win; without `resume` nothing changes.

    errors   SettingsError when PATH does not exist
    """
    said = dict(override.partition("=")[::2] for override in overrides)
    path = said.get("resume", "null").strip("'\"")
    if path in ("null", ""):
        return list(overrides)
    if not Path(path).exists():
        raise SettingsError(Slip(SPOKEN, "resume", f"must be a checkpoint or a run's folder, and {path} does not exist"))
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    before = folder / ".hydra" / "overrides.yaml"
    if not before.exists():
        return list(overrides)
    spoken = {key.lstrip("+~") for key in said}
    earlier = [str(line) for line in OmegaConf.load(before)]
    return [line for line in earlier if line.partition("=")[0].lstrip("+~") not in spoken] + list(overrides)


def _parse(overrides: Sequence[str], multirun: bool, loader: ConfigLoader) -> list[Override]:
    """Parse overrides and check that groups and their options exist."""
    parser = OverridesParser.create(config_loader=loader)
    parsed, slips = [], []
    for text in overrides:
        override = _parse_one(parser, text)
        if override is None:
            rule = "cannot be read; quote it: KEY='VALUE'" if "=" in text[1:] else "is not KEY=VALUE or GROUP=OPTION; see --help"
            slips.append(Slip(SPOKEN, text, rule))
            continue
        override.config_loader = loader
        slip = _group_slip(override, loader) or _sweep_slip(override, multirun)
        slips += [slip] if slip else []
        parsed.append(override)
    if slips:
        raise SettingsError(*slips)
    return parsed


def _parse_one(parser: OverridesParser, text: str) -> Override | None:
    try:
        override = parser.parse_override(text)
    except HydraException:
        return None
    return override if override.key_or_group else None


def _group_slip(override: Override, loader: ConfigLoader) -> Slip | None:
    """Find the slip in GROUP=OPTION, if it is one."""
    key = override.key_or_group
    if not _is_group(key, loader):
        if "/" not in key:
            return None  # a key; the type that reads it knows it or refuses it
        return Slip(SPOKEN, key, f"is not a group; {did_you_mean(key, _groups(loader))}")
    if override.is_delete():
        return None
    options = loader.get_group_options(key)
    for option in _alternatives(override):
        if option not in options:
            return Slip(SPOKEN, f"{key}={option}", f"names no file of conf/{key}; {did_you_mean(option, options)}")
    return None


def _is_group(name: str, loader: ConfigLoader) -> bool:
    return bool(name) and (bool(loader.get_group_options(name)) or bool(loader.list_groups(name)))


def _groups(loader: ConfigLoader, parent: str = "") -> list[str]:
    names = [f"{parent}/{name}" if parent else name for name in loader.list_groups(parent)]
    return names + [deeper for name in names for deeper in _groups(loader, name)]


def _sweep_slip(override: Override, multirun: bool) -> Slip | None:
    """Find a choice of values where one run is asked for, or a range that no sweeper here can walk."""
    if not override.is_sweep_override():
        return None
    key = override.key_or_group
    if not multirun:
        return Slip(SPOKEN, override.input_line or key, f"stands for several runs; add -m, or write {key}=[...] for a list")
    if not override.is_discrete_sweep():
        return Slip(
            SPOKEN, override.input_line or key, "is a continuous interval; write the values, such as a,b,c or range(0,10,2)"
        )
    return None


def _alternatives(override: Override) -> list[str]:
    """List the values of an override as text, one for each run of a multirun."""
    if override.is_sweep_override():
        return list(override.sweep_string_iterator()) if override.is_discrete_sweep() else []
    return [override.get_value_element_as_str()]


def _jobs(parsed: Sequence[Override], multirun: bool) -> Iterator[list[Override | tuple[Override, str]]]:
    """Walk the choices: all first, then each other one once. The full product would take as long as there are runs."""
    choices = [_alternatives(override) if multirun and override.is_sweep_override() else [""] for override in parsed]
    yield [(override, values[0]) for override, values in zip(parsed, choices, strict=True)]
    for i, values in enumerate(choices):
        for value in values[1:]:
            yield [(other, value if j == i else choices[j][0]) for j, other in enumerate(parsed)]


def _compose_one(job: Sequence[Any], config: str, folders: Sequence[Path]) -> Composed:
    """Compose one run; keys are added by force, so that the type which reads them can refuse an unknown one by name."""
    lines, spoken = [], set()
    loader = GlobalHydra.instance().config_loader()
    for override, choice in job:
        text = override.input_line or ""
        if choice:
            text = f"{override.get_key_element()}={choice}"
        ours = not (override.is_hydra_override() or _is_group(override.key_or_group, loader))
        if ours and not override.is_delete():
            spoken.add(override.key_or_group)
            text = "++" + text.lstrip("+")
        lines.append(text)
    try:
        values = hydra_compose(config, lines, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise SettingsError(_hydra_slip(error, config)) from error
    files = {group: _file(group, option, folders) for group, option in values.hydra.runtime.choices.items() if "hydra" not in group}
    with open_dict(values):
        del values["hydra"]
    OmegaConf.set_struct(values, False)
    return Composed(values, files, frozenset(spoken))


def _file(group: str, option: str, folders: Sequence[Path]) -> str:
    """Name the file of an option as a user would."""
    found = next((folder for folder in folders if (folder / group / f"{option}.yaml").exists()), CONF)
    return f"{found.name if found == CONF else found}/{group}/{option}.yaml"


def _hydra_slip(error: Exception, config: str) -> Slip:
    """Say in one line what Hydra says in several."""
    text = f"{error}\n{error.__cause__ or ''}"
    missing = re.search(r"In '([^']+)': Could not find '([^']+)'", text)
    if missing:
        return Slip(f"conf/{missing[1]}.yaml", "defaults", f"names {missing[2]}, and conf/{missing[2]}.yaml does not exist")
    key = re.search(r"Could not (?:override|append)[^']*'(hydra\.[^']+)'", text)
    if key:
        node, _, last = key[1].rpartition(".")
        known = OmegaConf.select(hydra_compose(config, return_hydra_config=True), node)
        return Slip(SPOKEN, key[1], f"is not a setting; {did_you_mean(last, map(str, known or ()))}")
    noise = ("To append", "object_type", "full_key", "reference_type")
    lines = [line.strip().rstrip(".") for line in text.splitlines() if line.strip() and not line.strip().startswith(noise)]
    return Slip(SPOKEN, "", re.sub(r"\s+", " ", "; ".join(lines)))


def help_text(command: str, about: str, examples: Mapping[str, str], groups: Mapping[str, str], conf: Path = CONF) -> str:
    """Write what --help prints: each group of `groups` with what it is, and its files with their first comment line."""
    width = max(map(len, examples)) + 2
    lines = [about, "", f"  {command} [GROUP=OPTION ...] [KEY=VALUE ...]", "", "Examples"]
    lines += [f"  {example:{width}} {what}" for example, what in examples.items()]
    for group, what in groups.items():
        lines += ["", f"{group}=... {what}"]
        lines += [f"  {file.stem:{20}} {_first_comment(file)}" for file in sorted((conf / group).glob("*.yaml"))]
    return "\n".join(lines) + "\n"


def settings_text(command: str, about: str, examples: Mapping[str, str], config: str, conf: Path = CONF) -> str:
    """Write what --help prints where a name comes before settings: examples, the names, and conf/CONFIG.yaml."""
    width = max(map(len, examples)) + 2
    lines = [about, "", f"  {command} [KEY=VALUE ...]", "", "Examples"]
    lines += [f"  {example:{width}} {what}" for example, what in examples.items()]
    lines += ["", f"NAME is one of {', '.join(sorted(file.stem for file in (conf / config).glob('*.yaml')))}"]
    lines += ["", f"Settings (conf/{config}.yaml)"]
    text = (conf / f"{config}.yaml").read_text(encoding="utf-8")
    return "\n".join(lines + [f"  {line}" for line in text.splitlines() if ":" in line and "  #" in line]) + "\n"


def _first_comment(file: Path) -> str:
    with file.open(encoding="utf-8") as text:
        line = text.readline().strip()
    return line.lstrip("# ") if line.startswith("#") else ""
