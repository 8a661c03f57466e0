import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fixtures import recordings, require_fixtures

from bedrock_proxy.errors import ClientFault, Code
from bedrock_proxy.models import family_of
from bedrock_proxy.models.names import (
    PROFILE_PREFIXES,
    ModelName,
    check_arn,
    parse_model_id,
    partition_of,
    without_account,
)

HAIKU = "anthropic.claude-3-haiku-20240307-v1:0"
ACCOUNT = "123456789012"
BEDROCK = "arn:aws:bedrock:us-east-1"

CANONICAL = {
    HAIKU: HAIKU,
    f"us.{HAIKU}": HAIKU,
    f"eu.{HAIKU}": HAIKU,
    f"apac.{HAIKU}": HAIKU,
    f"jp.{HAIKU}": HAIKU,
    f"au.{HAIKU}": HAIKU,
    f"us-gov.{HAIKU}": HAIKU,
    f"global.{HAIKU}": HAIKU,
    f"{HAIKU}:48k": HAIKU,
    f"{HAIKU}:200k": HAIKU,
    "anthropic.claude-v2:1": "anthropic.claude-v2:1",
    "anthropic.claude-v2:1:18k": "anthropic.claude-v2:1",
    "anthropic.claude-instant-v1": "anthropic.claude-instant-v1",
    "amazon.titan-text-lite-v1:0:4k": "amazon.titan-text-lite-v1:0",
    "cohere.embed-english-v3:0:512": "cohere.embed-english-v3:0",
    "mistral.mistral-7b-instruct-v0:2": "mistral.mistral-7b-instruct-v0:2",
    "ca.amazon.nova-lite-v1:0": "amazon.nova-lite-v1:0",
    "moonshotai.kimi-k2.5": "moonshotai.kimi-k2.5",
    "zai.glm-4.7": "zai.glm-4.7",
    f"{BEDROCK}::foundation-model/{HAIKU}": HAIKU,
    f"{BEDROCK}:{ACCOUNT}:inference-profile/us.{HAIKU}": HAIKU,
    f"arn:aws-us-gov:bedrock:us-gov-west-1:{ACCOUNT}:inference-profile/us-gov.{HAIKU}": HAIKU,
}


@pytest.mark.parametrize(("raw", "canonical"), CANONICAL.items(), ids=str)
def test_a_spelling_is_resolved_to_its_model(raw: str, canonical: str) -> None:
    name = parse_model_id(raw)
    assert (raw, canonical, False) == (name.raw, name.canonical, name.opaque)


OPAQUE = [
    f"{BEDROCK}:{ACCOUNT}:application-inference-profile/mi1dadi0g15f",
    f"{BEDROCK}:{ACCOUNT}:provisioned-model/abcdefghijkl",
    f"{BEDROCK}:{ACCOUNT}:custom-model/amazon.titan-text-lite-v1:0:4k/abcdefghijkl",
    f"{BEDROCK}:{ACCOUNT}:custom-model-deployment/abcdefghijkl",
    f"{BEDROCK}:{ACCOUNT}:imported-model/abcdefghijkl",
    f"{BEDROCK}:{ACCOUNT}:prompt/ABCDEFGHIJ:3",
    f"{BEDROCK}:{ACCOUNT}:prompt-router/abc",
    f"{BEDROCK}:{ACCOUNT}:default-prompt-router/anthropic.claude:1",
    f"{BEDROCK}:{ACCOUNT}:inference-profile/{HAIKU}",
    f"{BEDROCK}:{ACCOUNT}:inference-profile/moon.{HAIKU}",
    f"arn:aws:sagemaker:us-east-1:{ACCOUNT}:endpoint/endpoint-quick-start-idr7y",
]


@pytest.mark.parametrize("raw", OPAQUE)
def test_M75_an_arn_that_does_not_tell_its_model_stands_for_itself_only(raw: str) -> None:
    name = parse_model_id(raw)
    assert name.opaque
    assert raw == name.canonical
    assert family_of(name.canonical).name == "by-shape"


def test_an_arn_shows_its_parts() -> None:
    raw = f"arn:aws-cn:sagemaker:cn-north-1:{ACCOUNT}:endpoint/x"
    assert parse_model_id(raw) == ModelName(
        raw,
        raw,
        opaque=True,
        is_arn=True,
        partition="aws-cn",
        service="sagemaker",
        region="cn-north-1",
        account=ACCOUNT,
        kind="endpoint",
    )
    assert parse_model_id(f"global.{HAIKU}").geography == "global"
    assert not parse_model_id(HAIKU).is_arn


@pytest.mark.parametrize("raw", [None, "", 5, True, ["x"], {"a": 1}, "a" * 2_049], ids=str)
def test_M72_a_model_that_is_missing_empty_no_string_or_too_long_is_refused(raw: object) -> None:
    refused(raw)


def test_M72_the_longest_model_id_is_taken() -> None:
    assert parse_model_id("a" * 2_048).canonical == "a" * 2_048


@pytest.mark.parametrize(
    "raw",
    [
        ".",
        "..",
        "a..b",
        "a.",
        ".a",
        "a:",
        ":a",
        "a.:b",
        f"{HAIKU}\r\n",
        f"{HAIKU}\n",
        f" {HAIKU}",
        f"{HAIKU}\r\nx-y: z",
        f"{HAIKU}?x=1",
        f"{HAIKU}#x",
        f"{HAIKU}/../x",
        f"{HAIKU}%2F",
        "anthropic.claudé",
        "anthropic.clаude-v2",  # Cyrillic а
        "https://example.com/model",
        "//example.com",
        "a/b",
        "-a",
        "a\x00",
        "arn:",
        "arn:aws:bedrock",
        f"ARN:aws:bedrock:us-east-1::foundation-model/{HAIKU}",
        f"{BEDROCK}::foundation-model/{HAIKU}\n",
        f"{BEDROCK}::foundation-model/../{HAIKU}",
        f"{BEDROCK}::foundation-model/",
        f"{BEDROCK}:{ACCOUNT}:foundation-model/{HAIKU}",
        f"{BEDROCK}::inference-profile/us.{HAIKU}",
        f"{BEDROCK}:12345:inference-profile/us.{HAIKU}",
        f"arn:gcp:bedrock:us-east-1::foundation-model/{HAIKU}",
    ],
)
def test_M73_a_model_that_is_not_spelled_as_models_are_is_refused(raw: str) -> None:
    refused(raw)


def refused(raw: object) -> None:
    with pytest.raises(ClientFault) as caught:
        parse_model_id(raw)
    assert (caught.value.status, caught.value.code) == (400, Code.INVALID_REQUEST)
    if isinstance(raw, str) and len(raw) > 2:
        assert raw not in caught.value.message


@given(st.text(max_size=60) | st.text(alphabet="arn:aws/bedrock.-0_", max_size=60) | st.binary())
def test_M73_any_text_is_a_name_or_our_refusal(raw: object) -> None:
    try:
        name = parse_model_id(raw)
    except ClientFault:
        return
    assert name.raw == raw
    assert isinstance(raw, str)
    assert raw.isascii()
    assert raw.isprintable()
    assert not set(raw) & set(" ?#%\\\"'<>")
    assert ".." not in raw
    assert "//" not in raw


@pytest.mark.parametrize("tail", ["a.", "a:", "a-", "a/", "a..", "a" * 5])
def test_M73_a_long_near_miss_is_refused_at_once(tail: str) -> None:
    """The grammar is linear: a quadratic one would take seconds for what costs nothing here."""
    for start in ("", "arn:aws:bedrock:us-east-1::foundation-model/", "arn:aws"):
        raw = (start + tail * 2_048)[:2_047] + "\n"
        refused(raw)


# --- allow-lists -------------------------------------------------------------------------------

MODELS = st.sampled_from(
    [HAIKU, "amazon.nova-lite-v1:0", "meta.llama3-8b-instruct-v1:0", "anthropic.claude-v2"]
)
GEOGRAPHIES = st.sampled_from(sorted(PROFILE_PREFIXES))


@given(MODELS, GEOGRAPHIES)
def test_M76_every_true_spelling_of_a_model_is_that_model(model: str, geography: str) -> None:
    """No false refusal of an allowed model, no way around the list to another one."""
    spellings = [
        model,
        f"{geography}.{model}",
        f"{BEDROCK}::foundation-model/{model}",
        f"{BEDROCK}:{ACCOUNT}:inference-profile/{geography}.{model}",
    ]
    assert {model} == {parse_model_id(spelling).canonical for spelling in spellings}


@given(
    st.lists(
        st.sampled_from(["us", "eu", "global", "moon", "anthropic", "claude-v2", "1", "0", "48k"]),
        min_size=1,
        max_size=5,
    ),
    st.lists(st.sampled_from([".", ":", "-", ".us.", "::"]), min_size=4, max_size=4),
    st.sampled_from(
        ["", f"{BEDROCK}::foundation-model/", f"{BEDROCK}:{ACCOUNT}:inference-profile/"]
    ),
)
def test_M75_no_spelling_but_a_true_one_reaches_an_allowed_model(
    words: list[str], joints: list[str], start: str
) -> None:
    allowed = "anthropic.claude-v2:1"
    raw = start + words[0] + "".join(j + w for j, w in zip(joints, words[1:], strict=False))
    try:
        reached = parse_model_id(raw).canonical
    except ClientFault:
        return
    body = raw.removeprefix(start).removesuffix(":48k")
    profile = body.partition(".")[0] in PROFILE_PREFIXES
    plain = body.partition(".")[2] if profile else body
    true = (
        plain == allowed
        and not ("foundation-model" in start and profile)
        and not ("inference-profile" in start and not profile)
    )
    assert true == (reached == allowed)


def test_a_geography_is_stripped_once_and_only_before_a_provider() -> None:
    assert parse_model_id(f"us.us.{HAIKU}").canonical == f"us.{HAIKU}"
    assert parse_model_id("us.claude").canonical == "us.claude"
    assert parse_model_id(f"US.{HAIKU}").canonical == f"US.{HAIKU}"


# --- ARNs that lead elsewhere --------------------------------------------------------------------

PROFILE = f"{BEDROCK}:{ACCOUNT}:application-inference-profile/x"
ENDPOINT = f"arn:aws:sagemaker:us-east-1:{ACCOUNT}:endpoint/x"


@pytest.mark.parametrize(
    ("raw", "region", "account", "why"),
    [
        (
            PROFILE.replace("us-east-1", "us-west-2"),
            "us-east-1",
            None,
            "in us-east-1; the ARN names another region",
        ),
        (PROFILE.replace("us-east-1", ""), "us-east-1", None, "the ARN names no region"),
        (PROFILE.replace("arn:aws:", "arn:aws-cn:"), "us-east-1", None, "partition aws;"),
        (PROFILE, "us-gov-west-1", None, "in us-gov-west-1; the ARN names another region"),
        (
            PROFILE.replace("us-east-1", "us-gov-west-1"),
            "us-gov-west-1",
            None,
            "partition aws-us-gov;",
        ),
        (PROFILE, "us-east-1", "999999999999", "an AWS account that this proxy does not call"),
        (ENDPOINT, "us-east-1", "999999999999", "an AWS account that this proxy does not call"),
        (
            ENDPOINT.replace("endpoint/", "model/"),
            "us-east-1",
            None,
            "neither a resource of Bedrock",
        ),
        (
            PROFILE.replace(":bedrock:", ":lambda:"),
            "us-east-1",
            None,
            "neither a resource of Bedrock",
        ),
        (PROFILE.replace(":bedrock:", ":lambda:"), None, None, "neither a resource of Bedrock"),
    ],
)
def test_M74_an_arn_of_another_region_partition_account_or_service_is_told_what_does_not_fit(
    raw: str, region: str | None, account: str | None, why: str
) -> None:
    with pytest.raises(ClientFault) as caught:
        check_arn(parse_model_id(raw), region=region, account=account)
    assert (caught.value.status, caught.value.code) == (403, Code.MODEL_NOT_ALLOWED)
    assert why in caught.value.message
    assert caught.value.message.endswith(".")
    assert "arn:" not in caught.value.message
    assert not re.search("[0-9]{4}", caught.value.message)


@pytest.mark.parametrize(
    ("raw", "region", "account"),
    [
        (PROFILE, "us-east-1", ACCOUNT),
        (PROFILE, "us-east-1", None),
        (PROFILE, None, None),
        (ENDPOINT, "us-east-1", ACCOUNT),
        (f"{BEDROCK}::foundation-model/{HAIKU}", "us-east-1", ACCOUNT),
        (HAIKU, "eu-west-1", ACCOUNT),
        (PROFILE.replace("aws:bedrock:us-east", "aws-cn:bedrock:cn-north"), "cn-north-1", None),
    ],
)
def test_M74_an_arn_of_our_own_passes(raw: str, region: str | None, account: str | None) -> None:
    check_arn(parse_model_id(raw), region=region, account=account)


def test_a_region_names_its_partition() -> None:
    regions = ["us-east-1", "cn-north-1", "us-gov-west-1", "us-iso-east-1", "us-isob-east-1"]
    assert [partition_of(region) for region in regions] == [
        "aws",
        "aws-cn",
        "aws-us-gov",
        "aws-iso",
        "aws-iso-b",
    ]


# --- families ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "family"),
    [
        (HAIKU, "claude"),
        ("anthropic.claude-v2:1", "claude"),
        ("amazon.nova-lite-v1:0", "nova"),
        ("amazon.nova-2-lite-v1:0", "nova"),
        ("amazon.nova-2-multimodal-embeddings-v1:0", "embedding"),
        ("amazon.nova-canvas-v1:0", "media"),
        ("amazon.titan-text-express-v1", "titan-text"),
        ("amazon.titan-embed-text-v2:0", "embedding"),
        ("amazon.titan-image-generator-v1", "media"),
        ("amazon.rerank-v1:0", "rerank"),
        ("ai21.j2-mid-v1", "ai21-j2"),
        ("ai21.jamba-1-5-mini-v1:0", "jamba"),
        ("cohere.command-light-text-v14", "cohere-command"),
        ("cohere.command-r-plus-v1:0", "cohere-command-r"),
        ("cohere.embed-v4:0", "embedding"),
        ("cohere.rerank-v3-5:0", "rerank"),
        ("deepseek.r1-v1:0", "deepseek"),
        ("meta.llama4-maverick-17b-instruct-v1:0", "llama"),
        ("minimax.minimax-m2", "minimax"),
        ("mistral.pixtral-large-2502-v1:0", "mistral"),
        ("moonshot.kimi-k2-thinking", "kimi"),
        ("openai.gpt-oss-120b-1:0", "gpt-oss"),
        ("qwen.qwen3-32b-v1:0", "qwen"),
        ("stability.stable-image-ultra-v1:1", "media"),
        ("writer.palmyra-x5-v1:0", "writer"),
        ("somebody.new-model-v1:0", "by-shape"),
        ("does-not-exist", "by-shape"),
    ],
)
def test_a_model_belongs_to_its_family(model: str, family: str) -> None:
    assert family == family_of(model).name


def test_only_cohere_command_and_gpt_oss_have_a_stream_field_of_their_own() -> None:
    assert family_of("cohere.command-text-v14").body_has_stream
    assert family_of("openai.gpt-oss-20b-1:0").body_has_stream
    for model in ("cohere.command-r-v1:0", HAIKU, "qwen.qwen3-32b-v1:0", "unknown"):
        assert not family_of(model).body_has_stream


def test_every_recorded_model_id_is_understood() -> None:
    require_fixtures()
    for recording in recordings():
        if recording.model_id:
            assert parse_model_id(recording.model_id).raw == recording.model_id


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (HAIKU, HAIKU),
        (f"arn:aws:bedrock:us-east-1::foundation-model/{HAIKU}", f"foundation-model/{HAIKU}"),
        (
            "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc",
            "application-inference-profile/abc",
        ),
    ],
)
def test_a_name_in_a_log_holds_no_account(name: str, shown: str) -> None:
    assert shown == without_account(name)
