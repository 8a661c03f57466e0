"""
Where Bedrock is, by AWS's own configuration: what a boto3 client would say, without making one.
A client reads half a megabyte of descriptions, which is a sixth of the time to the first answer.

Sources: AWS SDKs and Tools Reference Guide, "Service-specific endpoints" and "Dual-stack and FIPS
endpoints"; the rules are botocore's own data.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bedrock_proxy.errors import ConfigurationError

if TYPE_CHECKING:
    from botocore.session import Session

_SERVICE: Final = "bedrock-runtime"


def region_of(profile_region: str | None) -> str:
    """
    The region that Bedrock is called in: ``AWS_REGION`` (which boto3 itself does not read), else
    ``AWS_DEFAULT_REGION``, else that of the profile.

    Raises:
        ConfigurationError: There is none.
    """
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or profile_region
    if not region:
        raise ConfigurationError(
            "No AWS region is set: put the region Bedrock is to be called in into AWS_REGION, "
            "for example AWS_REGION=us-east-1."
        )
    return region


def endpoint_of(session: "Session", region: str) -> str | None:
    """
    The URL that a ``bedrock-runtime`` client of *session* would have for *region*; None where
    only the client can tell.

    Raises:
        botocore.exceptions.BotoCoreError: The configuration cannot be read, or the region is none.
        ValueError: The configured endpoint is no URL.
    """
    from botocore.exceptions import DataNotFoundError
    from botocore.utils import validate_region_name

    validate_region_name(region)
    if "fips" in region:
        return None  # an old name for a region and a kind of endpoint at once
    try:
        return _configured(session) or _by_rules(session, region)
    except (ImportError, AttributeError, TypeError, KeyError, DataNotFoundError):
        return None  # a botocore that keeps these things elsewhere, or not at all


def _configured(session: "Session") -> str | None:
    from botocore.configprovider import ConfiguredEndpointProvider
    from botocore.utils import is_valid_endpoint_url, is_valid_ipv6_endpoint_url

    if session.get_config_variable("ignore_configured_endpoint_urls"):
        return None
    provider = ConfiguredEndpointProvider(
        full_config=session.full_config,
        scoped_config=session.get_scoped_config(),
        client_name=_SERVICE,
    )
    url: str | None = provider.provide()
    if url and not is_valid_endpoint_url(url) and not is_valid_ipv6_endpoint_url(url):
        raise ValueError(f"Invalid endpoint: {url}")
    return url


def _by_rules(session: "Session", region: str) -> str | None:
    from botocore.endpoint_provider import EndpointProvider

    loader: Any = session.get_component("data_loader")
    if any(
        Path(folder, "endpoints.json").exists()
        for folder in loader.search_paths
        if not loader.is_builtin_path(folder)
    ):
        return None  # the rules begin with what that file says
    rules = EndpointProvider(
        loader.load_service_model(_SERVICE, "endpoint-rule-set-1"),
        loader.load_data("partitions"),
    )
    found = rules.resolve_endpoint(
        Region=region,
        UseFIPS=bool(session.get_config_variable("use_fips_endpoint")),
        UseDualStack=bool(session.get_config_variable("use_dualstack_endpoint")),
    )
    return str(found.url)
