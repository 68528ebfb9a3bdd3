"""Writes a llama-architecture model of random weights, 2 MB: noise that llama.cpp serves with the real protocol.

One-hot embeddings make the output matrix a table of which byte follows which. Two entries of it make the model open a
tool call when tools are offered; a bias makes JSON close early under the server's grammar.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEMPLATE = """{%- if tools %}<|im_start|>system
Tools: <tools>
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
</tools>
Answer with <tool_call>
{"name": <name>, "arguments": <object>}
</tool_call><|im_end|>
{% endif %}
{%- for m in messages %}
{%- if m.role == 'tool' %}<|im_start|>user
<tool_response>
{{ m.content }}
</tool_response><|im_end|>
{% elif m.role == 'assistant' and m.tool_calls %}<|im_start|>assistant
{{ m.content or '' }}
{%- for call in m.tool_calls %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% else %}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

WIDTH, HEADS, HIDDEN = 320, 4, 32
SPECIAL = [b"<|im_start|>", b"<|im_end|>", b"<tool_call>", b"</tool_call>"]
TOKENS = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % n for n in range(256)), *SPECIAL]
KINDS = [2, 3, 3, *[6] * 256, 3, 3, 4, 4]
END, OPEN, NEWLINE = 2, len(TOKENS) - 2, 3 + 10


def write_model(path: Path, seed: int = 0) -> None:
    """Writes the model; the same seed gives the same bytes."""
    import gguf
    import numpy as np

    random = np.random.default_rng(seed)
    file: Any = gguf.GGUFWriter(str(path), "llama")
    file.add_name("tiny-random")
    file.add_context_length(8192)
    file.add_embedding_length(WIDTH)
    file.add_block_count(1)
    file.add_feed_forward_length(HIDDEN)
    file.add_head_count(HEADS)
    file.add_head_count_kv(HEADS)
    file.add_layer_norm_rms_eps(1e-5)
    file.add_rope_dimension_count(WIDTH // HEADS)
    file.add_vocab_size(len(TOKENS))
    file.add_file_type(0)
    file.add_tokenizer_model("llama")
    file.add_tokenizer_pre("default")
    file.add_token_list(TOKENS)
    file.add_token_scores([0.0] * len(TOKENS))
    file.add_token_types(KINDS)
    file.add_bos_token_id(1)
    file.add_eos_token_id(END)
    file.add_unk_token_id(0)
    file.add_add_bos_token(True)
    file.add_add_space_prefix(False)
    file.add_chat_template(TEMPLATE)

    embedding = np.zeros((len(TOKENS), WIDTH), np.float32)
    embedding[np.arange(len(TOKENS)), np.arange(len(TOKENS))] = 1.0
    follows = (random.standard_normal((len(TOKENS), WIDTH)) * 0.02).astype(np.float32)
    bias = np.zeros(len(TOKENS), np.float32)
    bias[[3 + ord(c) for c in "abcdefghijklmnopqrstuvwxyz"]] = 0.05
    bias[[3 + ord(c) for c in '"}],']] = 0.08
    bias[END] = 0.06
    follows += bias[:, None]
    follows[OPEN, [n for n in range(len(TOKENS)) if n != NEWLINE]] = -3
    follows[OPEN, NEWLINE] = 3.0
    follows[END, len(TOKENS) - 1] = 3.0
    follows[NEWLINE, OPEN] = 6.0
    file.add_tensor("token_embd.weight", embedding)
    file.add_tensor("output.weight", follows)
    file.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    square, wide, high = (WIDTH, WIDTH), (HIDDEN, WIDTH), (WIDTH, HIDDEN)
    shapes = {f"attn_{name}": square for name in ("q", "k", "v", "output")}
    for name, shape in (shapes | {"ffn_gate": wide, "ffn_up": wide, "ffn_down": high}).items():
        file.add_tensor(f"blk.0.{name}.weight", (random.standard_normal(shape) * 1e-3).astype(np.float32))
    for name in ("attn_norm", "ffn_norm"):
        file.add_tensor(f"blk.0.{name}.weight", np.ones(WIDTH, np.float32))
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
