"""Provenance for images that a test made by itself, and trust in who signed them."""

from __future__ import annotations

from typing import Any

from controller.adapters.attest.verifying import ImageTrust
from controller.adapters.keys import ImageSigner
from policies.provenance import PYTHON_BUILD


def where_from(commit: str = "c" * 40) -> dict[str, Any]:
    """A provenance that fits."""
    return {
        "buildDefinition": {
            "buildType": PYTHON_BUILD,
            "externalParameters": {"source": {"commit": commit}},
            "resolvedDependencies": [{"name": "source", "digest": {"gitCommit": commit}}],
        },
        "runDetails": {"builder": {"id": PYTHON_BUILD}},
    }


def trust_in(*signers: ImageSigner) -> ImageTrust:
    """Trust in these keys."""
    return ImageTrust(keys=tuple(signer.public_pem for signer in signers))
