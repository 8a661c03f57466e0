#!/bin/sh
# Ask a model with curl:  ask.sh [--whole | --array] URL PROMPT      (the token in TOKEN)
#   --whole   the model's own JSON, at once
#   --array   one JSON array, an element at a time
#   neither   Server-Sent Events, as they come
set -eu
: "${TOKEN:?set TOKEN to your token}"
model=${MODEL:-anthropic.claude-3-haiku-20240307-v1:0}
stream=true accept=text/event-stream
case ${1-} in
    --whole) stream=false accept=application/json; shift ;;
    --array) accept=application/json; shift ;;
esac
if [ $# -ne 2 ]; then
    sed -n '2,5s/^# //p' "$0" >&2
    exit 2
fi

# JSON's own escapes, for a prompt with quotes or of several lines.
tab=$(printf '\t')
prompt=$(printf '%s' "$2" | sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e "s/$tab/\\\\t/g" -e '$!s/$/\\n/' | tr -d '\n')

# The token comes by a file descriptor: everyone on the machine can see a command line.
# --fail-with-body shows what a refusal says, and tells of it in the exit status.
curl --silent --show-error --no-buffer --fail-with-body \
    --config /dev/fd/3 --data-binary @- --url "$1" 3<<CONFIG <<JSON
header = "Authorization: Bearer $TOKEN"
header = "Content-Type: application/json"
header = "Accept: $accept"
CONFIG
{
  "modelId": "$model",
  "stream": $stream,
  "anthropic_version": "bedrock-2023-05-31",
  "max_tokens": 300,
  "messages": [{"role": "user", "content": "$prompt"}]
}
JSON
