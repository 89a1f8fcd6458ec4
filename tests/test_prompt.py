"""prompt.py against transformers' LlavaProcessor, with tokenizers built here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from edgespec.errors import BundleError, PromptError
from edgespec_runtime.prompt import ImageMark, Prompt, build_prompt
from edgespec_runtime.template import ChatTemplate
from edgespec_runtime.tokenizer import Tokenizer

LLAVA = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}"
    "{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHATML = """{{ bos_token }}{% for message in messages %}
    {%- if message.content is string %}
{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- else %}
{{ '<|im_start|>' + message.role + '\n' }}
        {%- for part in message.content %}
            {%- if part.type == 'image' %}<image>{% continue %}{% endif %}
{{ part.text | trim }}{% endfor %}
{{ '<|im_end|>\n' }}
    {%- endif %}
{% endfor %}
{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
INLINE = (
    "{% for m in messages %}{% for p in m.content %}"
    "{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}{% endfor %}{{ eos_token }}"
)
STRING_ONLY = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
TEMPLATES = {"llava": LLAVA, "chatml": CHATML, "inline": INLINE}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
CHARS = [chr(n) for n in range(33, 127)]


def llama_backend() -> Backend:
    """Metaspace by normalizer, byte fallback, BOS added by the post-processor."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), "▁", *CHARS]
    pieces += ["▁W", "▁Wh", "at", "▁A", "AS", ":"]
    vocab = {piece: n for n, piece in enumerate(dict.fromkeys(pieces))}
    merges = [("▁", "W"), ("▁W", "h"), ("a", "t"), ("▁", "A"), ("A", "S")]
    backend = Backend(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return finished(backend)


def byte_backend() -> Backend:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: n for n, piece in enumerate(["<unk>", "<s>", "</s>", *alphabet, "ĠW", "at"])}
    backend = Backend(models.BPE(vocab, [("Ġ", "W"), ("a", "t")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return finished(backend)


def finished(backend: Backend) -> Backend:
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<image>"]
    backend.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in special]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return backend


BACKENDS = {"llama": llama_backend, "byte_level": byte_backend}


def saved(backend: Backend, folder: Path) -> Path:
    backend.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


@pytest.fixture(params=BACKENDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    return Tokenizer(saved(BACKENDS[request.param](), tmp_path), special_tokens=SPECIAL)


def build(prompt: Any, n_images: int, tokenizer: Tokenizer, **changes: Any) -> Prompt:
    settings: dict[str, Any] = {
        "template": ChatTemplate.from_source(LLAVA),
        "image": ImageMark("<image>", tokenizer.token_to_id("<image>") or 0, 4),
        "max_context": None,
        **changes,
    }
    return build_prompt(prompt, n_images, settings.pop("template"), tokenizer, **settings)


def user(*parts: str | None) -> dict[str, Any]:
    content = [{"type": "image"} if p is None else {"type": "text", "text": p} for p in parts]
    return {"role": "user", "content": content}


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "text": [user("What is this?")],
    "one": [user(None, "What is this?")],
    "two": [user(None, None, "  What  differs? ")],
    "between": [user("Left:", None, "right:", None, "naïve 猫🙂\n\nWhich?")],
    "turns": [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        user(None, "What is this?"),
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}], "tool_calls": None},
        user(None, "And What <s> now </s>?"),
    ],
}


def hf_processor(tokenizer: Tokenizer) -> Any:
    transformers = pytest.importorskip("transformers")
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend, **SPECIAL)
    return transformers.LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=28),
        tokenizer=fast,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_ids_equal_llava_processor(tokenizer: Tokenizer, name: str, template: str) -> None:
    messages = CONVERSATIONS[name]
    n_images = sum(part["type"] == "image" for m in messages for part in m["content"])
    got = build(
        messages, n_images, tokenizer, template=ChatTemplate.from_source(TEMPLATES[template])
    )
    processor = hf_processor(tokenizer)
    chat: dict[str, Any] = {
        "chat_template": TEMPLATES[template],
        "add_generation_prompt": True,
    }
    assert got.text == processor.apply_chat_template(messages, **chat)
    with_images = [
        {**m, "content": [{**p, "image": picture()} if p["type"] == "image" else p for p in parts]}
        for m, parts in ((m, m["content"]) for m in messages)
    ]
    want = processor.apply_chat_template(with_images, tokenize=True, return_dict=True, **chat)
    np.testing.assert_array_equal(got.ids, np.asarray(want["input_ids"]).ravel())
    assert got.ids.dtype == np.int64
    bos = tokenizer.token_to_id("<s>")
    assert got.ids[0] == bos and got.ids[1] != bos
    assert len(got.image_spans) == n_images
    for start, end in got.image_spans:
        assert end - start == 4
        assert set(got.ids[start:end]) == {tokenizer.token_to_id("<image>")}
    assert int((got.ids == tokenizer.token_to_id("<image>")).sum()) == 4 * n_images


def picture() -> Image.Image:
    return Image.new("RGB", (40, 30), (9, 99, 199))


def test_processor_call_gives_the_same_ids(tokenizer: Tokenizer) -> None:
    got = build("What is this?", 2, tokenizer)
    processor = hf_processor(tokenizer)
    want = processor(text=got.text, images=[picture(), picture()])
    np.testing.assert_array_equal(got.ids, np.asarray(want["input_ids"]).ravel())


def test_a_string_is_one_user_message(tokenizer: Tokenizer) -> None:
    got = build("What is this?", 1, tokenizer)
    assert got.text == "USER: <image>\nWhat is this? ASSISTANT:"
    assert np.array_equal(got.ids, build([user(None, "What is this?")], 1, tokenizer).ids)


def test_openai_parts_and_tuples_are_accepted(tokenizer: Tokenizer) -> None:
    part = {"type": "image_url", "image_url": {"url": "x.png"}}
    message = {"role": "user", "content": (part, {"type": "text", "text": "Hi"})}
    assert build((message,), 1, tokenizer).text == "USER: <image>\nHi ASSISTANT:"


def test_content_is_adapted_to_what_the_template_reads(tokenizer: Tokenizer) -> None:
    plain = [{"role": "user", "content": "Hello you"}]
    assert "Hello you" in build(plain, 0, tokenizer).text  # LLaVA's template alone would lose it
    strings = ChatTemplate.from_source(STRING_ONLY)
    assert build(plain, 0, tokenizer, template=strings).text == "[user] Hello you\n"
    assert build("Hi", 0, tokenizer, template=strings).text == "[user] Hi\n"
    assert build("Hi", 2, tokenizer, template=strings).text == "[user] <image>\n<image>\nHi\n"
    both = ChatTemplate.from_source(CHATML)
    for prompt in (plain, "Hello you"):
        assert "user\nHello you<|im_end|>" in build(prompt, 0, tokenizer, template=both).text


@pytest.mark.parametrize(
    ("prompt", "n_images", "words"),
    [
        ("", 0, "empty"),
        (" \n\t", 1, "empty"),
        ([], 0, "empty"),
        ([user(None)], 1, "empty"),
        ([user(None, "  ")], 1, "empty"),
        ("Look: <image>", 1, "contains '<image>'"),
        ([user(None, "a<image>b")], 1, "contains '<image>'"),
        ([{"role": "user", "content": "a <image>"}], 1, "contains '<image>'"),
        ([user(None, "Hi")], 2, "1 image parts, but 2 images"),
        ([user("Hi")], 1, "0 image parts, but 1 images"),
        ([user(None, "Hi")], 0, "1 image parts, but 0 images"),
        (["Hi"], 0, "message 0"),
        ([{"content": "Hi"}], 0, "message 0"),
        ([user("Hi"), {"role": "user", "content": 3}], 0, "message 1 is int"),
        ([{"role": "user", "content": [{"type": "video"}]}], 0, "neither text nor image"),
        ([{"role": "user", "content": [{"type": "text"}]}], 0, "neither text nor image"),
        ([{"role": "user", "content": ["Hi"]}], 0, "neither text nor image"),
        (7, 0, "got int"),
        ("lone \ud800 surrogate", 0, "surrogate"),
    ],
)
def test_prompts_that_are_refused(
    tokenizer: Tokenizer, prompt: Any, n_images: int, words: str
) -> None:
    with pytest.raises(PromptError, match=words):
        build(prompt, n_images, tokenizer)


def test_templates_that_do_not_fit_the_images(tokenizer: Tokenizer) -> None:
    once = ChatTemplate.from_source(
        "<image>{% for p in messages[0].content %}{{ p.text }}{% endfor %}"
    )
    assert build("Hi", 1, tokenizer, template=once).image_spans == ((1, 5),)
    with pytest.raises(PromptError, match="wrote 1 '<image>' placeholders for 2 images"):
        build("Hi", 2, tokenizer, template=once)
    with pytest.raises(PromptError, match="wrote 1 '<image>' placeholders for 0 images"):
        build("Hi", 0, tokenizer, template=once)


def test_context_limit(tokenizer: Tokenizer) -> None:
    length = len(build("What is this?", 1, tokenizer).ids)
    assert len(build("What is this?", 1, tokenizer, max_context=length).ids) == length
    with pytest.raises(PromptError, match=rf"is {length} tokens .* holds {length - 1};"):
        build("What is this?", 1, tokenizer, max_context=length - 1)


def test_the_image_token_must_be_the_tokenizers(tokenizer: Tokenizer) -> None:
    right = tokenizer.token_to_id("<image>") or 0
    for mark in (ImageMark("<image>", 1, 4), ImageMark("<picture>", right, 4)):
        with pytest.raises(BundleError, match="image token"):
            build("Hi", 1, tokenizer, image=mark)


def test_template_helpers_and_whitespace() -> None:
    source = (
        "{% for n in [1, 2, 3] %}\n    {% if n == 2 %}\n{% continue %}\n    {% endif %}\n"
        "{{ n }}\n{% endfor %}"
    )
    assert ChatTemplate.from_source(source).render([]) == "1\n3\n"
    source = "{{ messages | tojson }} {{ x | tojson(indent=1) }} {{ strftime_now('%Y') | length }}"
    got = ChatTemplate.from_source(source).render([{"role": "<é>"}], x=[1])
    assert got == '[{"role": "<é>"}] [\n 1\n] 4'
    assert ChatTemplate.from_source("{{ add_generation_prompt }}").render([], False) == "False"
    assert ChatTemplate.from_source("{{ tools is none }}").render([]) == "True"
    assert ChatTemplate.from_source("{{ tools }}").render([], tools=["a"]) == "['a']"


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0]['role'] + 1 }}",
        "{{ nothing.at_all.there }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% for n in range(10000000) %}x{% endfor %}",
        "{{ 1 / 0 }}",
    ],
)
def test_template_failures_are_prompt_errors(source: str) -> None:
    with pytest.raises(PromptError, match="chat template failed"):
        ChatTemplate.from_source(source).render([{"role": "user", "content": "Hi"}])


def test_a_template_that_cannot_be_parsed() -> None:
    with pytest.raises(PromptError, match="cannot be parsed"):
        ChatTemplate.from_source("{% for %}")


def test_templates_see_no_live_objects() -> None:
    template = ChatTemplate.from_source("{{ messages[0].image }} {{ messages[0].role }}")
    assert template.render([{"role": "user", "image": picture()}]) == "<Image> user"


def test_truncation_and_padding_in_the_file_are_ignored(tmp_path: Path) -> None:
    backend = llama_backend()
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    tokenizer = Tokenizer(saved(backend, tmp_path))
    ids = tokenizer.encode("What is this?", add_special_tokens=False)
    assert 3 < len(ids) < 50
    assert tokenizer.decode(ids) == "What is this?"


def test_tokenizer_basics(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("What? </s>")
    assert ids[0] == tokenizer.token_to_id("<s>")
    assert tokenizer.encode("What? </s>", add_special_tokens=False) == ids[1:]
    assert "</s>" not in tokenizer.decode(ids)
    assert "</s>" in tokenizer.decode(np.asarray(ids), skip_special_tokens=False)  # type: ignore[arg-type]
    assert tokenizer.vocab_size == max(tokenizer.backend.get_vocab().values()) + 1
    assert tokenizer.token_to_id("no such token") is None


def test_from_folder_reads_special_tokens(tmp_path: Path) -> None:
    saved(llama_backend(), tmp_path)
    assert Tokenizer.from_folder(tmp_path).special_tokens == {}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": "<s>"}}))
    config = {"eos_token": "</s>", "pad_token": None, "add_bos_token": True, "padding_side": "left"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    want = {"bos_token": "<s>", "eos_token": "</s>"}
    assert Tokenizer.from_folder(tmp_path).special_tokens == want
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(BundleError, match="tokenizer_config.json"):
        Tokenizer.from_folder(tmp_path)


def test_bad_tokenizer_files(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no tokenizer at"):
        Tokenizer(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(BundleError, match="cannot read"):
        Tokenizer(tmp_path / "bad.json")
