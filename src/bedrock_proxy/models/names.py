"""
Model ids and ARNs: a strict grammar, and the canonical model behind a spelling.

The grammar is that of AWS, Bedrock API reference, InvokeModel, ``modelId``, without the
characters it allows nowhere in practice.
"""

import re
from functools import lru_cache
from typing import Final

from attrs import frozen

from bedrock_proxy.errors import ClientFault, Code

MAX_LENGTH: Final = 2_048
"""The longest model id, in characters (``InvokeModelIdentifier``)."""

PROFILE_PREFIXES: Final = frozenset(
    {"us", "us-gov", "eu", "apac", "jp", "au", "ca", "sa", "me", "af", "il", "mx", "global"}
)
"""
The geographies of inference profiles (AWS, Bedrock user guide, "Supported Regions and
models for inference profiles"). An unknown one is not stripped: it is then another model.
"""

# Compiled when first met (`re` keeps them): most processes never see an ARN.
# Possessive and free of nesting: the time is linear in the length.
_WORD: Final = r"[A-Za-z0-9](?:[A-Za-z0-9_-]|[.:](?=[A-Za-z0-9]))*+"
_ARN: Final = (
    r"arn:(?P<partition>aws(?:-[a-z0-9]+)*+)"
    r":(?P<service>[a-z][a-z0-9-]{0,30})"
    r":(?P<region>[a-z0-9-]{0,20})"
    r":(?P<account>(?:[0-9]{12})?)"
    r":(?P<kind>[a-z][a-z0-9-]{0,62})"
    rf"/(?P<name>{_WORD}(?:/{_WORD}){{0,2}})"
)
_CONTEXT: Final = r"(?P<model>.+:[0-9]+):(?:[0-9]{1,4}k|512|mm)"
"""A context-length (or modality) suffix after the version: ``…-v1:0:48k`` is ``…-v1:0``."""

_WITHOUT_ACCOUNT: Final = frozenset({"foundation-model"})


@frozen
class ModelName:
    """
    A model as a client named it, understood.

    Attributes:
        raw: As it was named; what goes to Bedrock.
        canonical: The foundation model's id, without geography and context length. Where
            the ARN does not tell the model (see ``opaque``), the ARN itself, so that an
            allow-list must name exactly that ARN to allow it.
        opaque: Whether only AWS knows which model this is.
        geography: The inference profile's prefix (``us``, ``global`` …), or None.
        is_arn: Whether it was an ARN; the fields below are None otherwise.
        kind: The ARN's resource type (``inference-profile``, ``endpoint`` …).
        account: Twelve digits, or empty.
    """

    raw: str
    canonical: str
    opaque: bool = False
    geography: str | None = None
    is_arn: bool = False
    partition: str | None = None
    service: str | None = None
    region: str | None = None
    account: str | None = None
    kind: str | None = None


def parse_model_id(raw: object) -> ModelName:
    """
    The model that *raw* names.

    Raises:
        ClientFault: ``invalid_request``: it is missing, empty, not a string, longer than
            2,048 characters, or not spelled as model ids and ARNs are.
    """
    if raw is None or raw == "":
        raise ClientFault("The request must name a model.")
    if not isinstance(raw, str):
        raise ClientFault("The model must be named by a string.")
    if len(raw) > MAX_LENGTH:
        raise ClientFault(f"The model id is longer than {MAX_LENGTH} characters.")
    return _parsed(raw)


@lru_cache(maxsize=512)  # clients choose the names
def _parsed(raw: str) -> ModelName:
    if raw.startswith("arn:"):
        return _parse_arn(raw)
    if re.fullmatch(_WORD, raw) is None:
        raise ClientFault(_MISSPELLED)
    geography, model = _split_profile(raw)
    return ModelName(raw, _without_context(model), geography=geography)


_MISSPELLED: Final = (
    "The model is not spelled as Bedrock's model ids and ARNs are, for example "
    "amazon.nova-lite-v1:0."
)


def _parse_arn(raw: str) -> ModelName:
    arn = re.fullmatch(_ARN, raw)
    if arn is None:
        raise ClientFault(_MISSPELLED)
    kind, name = arn["kind"], arn["name"]
    bedrock = arn["service"] == "bedrock"
    if bedrock and (kind in _WITHOUT_ACCOUNT) != (arn["account"] == ""):
        raise ClientFault(_MISSPELLED)
    geography: str | None = None
    canonical: str | None = None
    if bedrock and kind == "foundation-model" and "/" not in name:
        canonical = _without_context(name)
    elif bedrock and kind == "inference-profile" and "/" not in name:
        geography, model = _split_profile(name)
        canonical = _without_context(model) if geography is not None else None
    return ModelName(
        raw,
        raw if canonical is None else canonical,
        opaque=canonical is None,
        geography=geography,
        is_arn=True,
        partition=arn["partition"],
        service=arn["service"],
        region=arn["region"],
        account=arn["account"],
        kind=kind,
    )


def _split_profile(model: str) -> tuple[str | None, str]:
    head, dot, rest = model.partition(".")
    # What is left must still name a provider, or the prefix was one.
    if dot and head in PROFILE_PREFIXES and "." in rest:
        return head, rest
    return None, model


def _without_context(model: str) -> str:
    suffixed = re.fullmatch(_CONTEXT, model)
    return suffixed["model"] if suffixed is not None else model


# --- who may ------------------------------------------------------------------------------


def not_allowed() -> ClientFault:
    """The one answer to a model that is not on the customer's list, whatever the reason."""
    return ClientFault(
        "This model is not available to you; ask whoever gave you your token for it.",
        Code.MODEL_NOT_ALLOWED,
    )


def _leads_elsewhere(why: str) -> ClientFault:
    return ClientFault(why, Code.MODEL_NOT_ALLOWED)


def without_account(name: str) -> str:
    """
    A model's name as logs may hold it: an ARN as its resource alone
    (``application-inference-profile/abc``), anything else as it is.
    """
    return name.split(":", 5)[-1] if name.startswith("arn:") else name


def partition_of(region: str) -> str:
    """The partition that *region* belongs to, by AWS's naming of regions."""
    for prefix, partition in _PARTITIONS:
        if region.startswith(prefix):
            return partition
    return "aws"


_PARTITIONS: Final = (
    ("cn-", "aws-cn"),
    ("us-gov-", "aws-us-gov"),
    ("us-iso-", "aws-iso"),
    ("us-isob-", "aws-iso-b"),
    ("eu-isoe-", "aws-iso-e"),
    ("us-isof-", "aws-iso-f"),
    ("eusc-", "aws-eusc"),
)


def check_arn(
    name: ModelName,
    *,
    region: str | None = None,
    partition: str | None = None,
    account: str | None = None,
) -> None:
    """
    Refuse an ARN that leads elsewhere. Ids that are no ARNs pass.

    Args:
        region: Where the client calls Bedrock; None (or empty) checks neither region nor partition.
        partition: The region's partition, where its name does not tell.
        account: The only account whose resources may be called; None is any.

    Raises:
        ClientFault: ``model_not_allowed``. It says what does not fit; not the account that would.
    """
    if not name.is_arn:
        return
    if name.service != "bedrock" and (name.service, name.kind) != ("sagemaker", "endpoint"):
        raise _leads_elsewhere("The ARN names neither a resource of Bedrock nor an endpoint.")
    if region:
        if name.region != region:
            which = "another" if name.region else "no"
            raise _leads_elsewhere(
                f"This proxy calls Bedrock in {region}; the ARN names {which} region."
            )
        partition = partition or partition_of(region)
    if partition is not None and name.partition != partition:
        raise _leads_elsewhere(
            f"This proxy calls Bedrock in the partition {partition}; the ARN names another one."
        )
    if account and name.account and name.account != account:
        raise _leads_elsewhere("The ARN names an AWS account that this proxy does not call.")
