"""``bedrock-proxy simulate``: the fake Bedrock, for trying things without an AWS account."""
