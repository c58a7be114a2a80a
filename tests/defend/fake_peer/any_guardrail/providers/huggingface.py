"""A tokenizer of words that knows its limit, and a model that is a list of what was loaded."""

from pathlib import Path
from types import SimpleNamespace


class Tokenizer:
    def __init__(self, limit):
        self.model_max_length = limit

    def __call__(self, text, truncation=False):
        words = ["[", *text.split(), "]"]
        return {"input_ids": words[: self.model_max_length] if truncation else words}


class HuggingFaceProvider:
    def __init__(self, limit=10**30, table=None):
        self.limit, self.table = limit, table
        self.trust_remote_code, self.revision, self.tokenizer_id = True, None, "somewhere/else"
        self.loaded = None

    def load_model(self, model_id, **more):
        assert not more
        assert not self.trust_remote_code
        if Path(model_id).is_absolute():
            assert self.tokenizer_id is None
            (Path(model_id) / "config.json").read_text()
        self.loaded = f"{model_id}@{self.revision}"
        self.tokenizer = Tokenizer(self.limit)
        self.model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=self.table))

    def generate_chat(self, messages, *, max_new_tokens):
        written = messages.split()
        cut = written[:max_new_tokens]
        return SimpleNamespace(data={"generated_text": " ".join(cut), "completion_token_count": len(cut)})
