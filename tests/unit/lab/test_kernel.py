"""Option lists, their verification, and what the cache key of a kernel depends on."""

from pathlib import Path

import pytest

from tunsec_lab import kernel
from tunsec_lab.apt import SOURCE_PACKAGE
from tunsec_lab.cache import Cache, Progress
from tunsec_lab.errors import LabError
from tunsec_lab.kernel import (
    Clock,
    KernelRecipe,
    Option,
    apply_change,
    fragment,
    missing_options,
    parse_change,
    parse_options,
    wanted_options,
)


def test_option_lists_have_comments_and_alternatives() -> None:
    text = "# why\nCONFIG_A=y\n\nCONFIG_OLD=y | CONFIG_NEW=y  # renamed\nCONFIG_N=8\n"
    options = parse_options(text, source="list")
    assert list(map(str, options)) == ["CONFIG_A=y", "CONFIG_OLD=y | CONFIG_NEW=y", "CONFIG_N=8"]
    assert fragment(options) == "CONFIG_A=y\nCONFIG_OLD=y\nCONFIG_NEW=y\nCONFIG_N=8\n"


@pytest.mark.parametrize("line", ["CONFIG_A", "A=y", "CONFIG_A=y CONFIG_B=y", "CONFIG_A=y |"])
def test_a_line_that_is_no_option_is_an_error_with_its_place(line: str) -> None:
    with pytest.raises(LabError, match=r"list:2: .* is not an option line"):
        parse_options(f"CONFIG_X=y\n{line}\n", source="list")


def test_a_difference_takes_out_and_adds() -> None:
    base = parse_options("CONFIG_SMP=y\nCONFIG_A=y\n", source="base")
    change = parse_change("-CONFIG_SMP=y\nCONFIG_B=y\n", source="change")
    assert list(map(str, apply_change(base, change, source="change"))) == [
        "CONFIG_A=y",
        "CONFIG_B=y",
    ]
    stale = parse_change("-CONFIG_GONE=y\n", source="change")
    with pytest.raises(LabError, match="change takes out CONFIG_GONE=y"):
        apply_change(base, stale, source="change")
    with pytest.raises(LabError, match="cannot take CONFIG_SMP=y out"):
        parse_options("-CONFIG_SMP=y", source="base")


def test_each_missing_option_is_named() -> None:
    wanted = parse_options(
        "CONFIG_A=y\nCONFIG_B=y\nCONFIG_N=8\nCONFIG_OLD=y | CONFIG_NEW=y\nCONFIG_C=y\n",
        source="list",
    )
    dot_config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_N=80\nCONFIG_NEW=y\n"
    assert [str(option) for option in missing_options(wanted, dot_config)] == [
        "CONFIG_B=y",
        "CONFIG_N=8",
        "CONFIG_C=y",
    ]


def test_the_error_of_a_missing_option_names_it(tmp_path: Path) -> None:
    (tmp_path / ".config").write_text("CONFIG_A=y\n")
    with pytest.raises(LabError, match="CONFIG_XFRM_USER=y"):
        kernel.check_options(
            (Option(("CONFIG_XFRM_USER=y",)),), tmp_path / ".config", when="after the build"
        )


def test_the_lists_of_the_repository_are_good() -> None:
    real = set(map(str, wanted_options(Clock.REAL)))
    virtual = set(map(str, wanted_options(Clock.VIRTUAL)))
    assert "CONFIG_XFRM_USER=y" in real & virtual
    assert "CONFIG_SMP=y" in real - virtual
    assert virtual - real == {"CONFIG_UML_TIME_TRAVEL_SUPPORT=y"}


def test_the_key_depends_on_options_and_recipe_not_on_a_mirror(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", "")  # no apt, no git: nothing can be asked
    key = KernelRecipe(Clock.REAL).key()
    assert key == KernelRecipe(Clock.REAL).key()
    assert KernelRecipe(Clock.VIRTUAL).key() == KernelRecipe(Clock.VIRTUAL_CPU).key() != key
    changed = tmp_path / "kernel.config"
    changed.write_text(kernel.BASE_OPTIONS.read_text() + "CONFIG_MORE=y\n")
    monkeypatch.setattr(kernel, "BASE_OPTIONS", changed)
    assert KernelRecipe(Clock.REAL).key() != key


def test_a_cached_kernel_is_used_without_asking_anybody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", "")
    cache = Cache(tmp_path, Progress(quiet=True))
    recipe = KernelRecipe(Clock.REAL)
    assert recipe.cached(cache) is None
    folder = cache.place("kernel", recipe.key())
    folder.mkdir(parents=True)
    (folder / "made-from.json").write_text('{"source": "linux-source-7.2_7.2.13-1_all"}')
    assert recipe.get(cache).source == "linux-source-7.2_7.2.13-1_all"


def test_a_users_tree_has_a_key_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="not a kernel tree"):
        KernelRecipe(Clock.REAL, tmp_path).key()
    (tmp_path / "arch/um").mkdir(parents=True)
    (tmp_path / "Makefile").write_text("VERSION = 7\n")
    key = KernelRecipe(Clock.REAL, tmp_path).key()
    assert key != KernelRecipe(Clock.REAL).key()
    (tmp_path / "Makefile").write_text("VERSION = 8\n")
    assert KernelRecipe(Clock.REAL, tmp_path).key() != key


@pytest.mark.parametrize(
    ("package", "fits"),
    [
        ("linux-source-7.2", True),
        ("linux-source-10.0", True),
        ("linux-source-6.12", False),
        ("linux-source", False),
        ("linux-source-7.2-rt", False),
    ],
)
def test_only_sources_that_are_new_enough_are_taken(package: str, fits: bool) -> None:
    assert bool(SOURCE_PACKAGE.match(package)) is fits
