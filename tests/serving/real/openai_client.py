"""Asks a server with OpenAI's own client: python openai_client.py ADDRESS MODEL."""

import json
import sys

import openai

address, model = sys.argv[1:]
client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
asked = {"model": model, "prompt": ["to be", "or"], "max_tokens": 40, "seed": 3}
asked |= {"temperature": 0.8, "n": 2, "extra_body": {"top_k": 5}}
whole = client.completions.create(**asked)

streamed = {}
reasons = {}
usage = None
options = {"include_usage": True}
for chunk in client.completions.create(**asked, stream=True, stream_options=options):
    usage = chunk.usage
    for choice in chunk.choices:
        streamed[choice.index] = streamed.get(choice.index, "") + choice.text
        reasons[choice.index] = choice.finish_reason

stopped = client.completions.create(**asked | {"n": 1, "stop": "t"})
errors = {}
for name, wrong in {
    "no model": {"model": "other"},
    "no prompt": {"prompt": ""},
    "temperature": {"temperature": -1},
    "logprobs": {"logprobs": 2},
}.items():
    try:
        client.completions.create(**asked | wrong)
    except openai.APIStatusError as error:
        errors[name] = [type(error).__name__, error.status_code, error.body["message"]]
try:
    client.chat.completions.create(model=model, messages=[])
except openai.NotFoundError as error:
    errors["chat"] = [type(error).__name__, 404, error.body["message"]]
print(
    json.dumps(
        {
            "models": [one.id for one in client.models.list()],
            "model": client.models.retrieve(model).to_dict(),
            "texts": [choice.text for choice in whole.choices],
            "reasons": [choice.finish_reason for choice in whole.choices],
            "usage": whole.usage.model_dump(),
            "streamed": [streamed[index] for index in sorted(streamed)],
            "streamed reasons": [reasons[index] for index in sorted(reasons)],
            "streamed usage": usage.model_dump(),
            "stopped": [[c.text, c.finish_reason] for c in stopped.choices],
            "errors": errors,
        }
    )
)
