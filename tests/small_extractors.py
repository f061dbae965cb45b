"""Extractors of the real architectures with small or random weights, in files laid out as the
published ones, pinned as test records."""

import hashlib
import json
import re
from dataclasses import replace

import torch
from safetensors.torch import save_file

from ditbench.extractors.table import extractors

VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 14,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def write_extractors(folder, names=("tf2015", "dinov2_l14", "openai_vit_l14", "openai_l14_336")):
    """Files of `names` under `folder`, and the table that pins them: each row but for sizes and
    hashes is the official one."""
    torch.manual_seed(0)
    table = {}
    for name in names:
        row, at = extractors()[name], folder / name
        at.mkdir(parents=True)
        shape, features = WRITERS[name](at)
        files = {file: hashlib.sha256((at / file).read_bytes()).hexdigest() for file in row.files}
        table[name] = replace(row, files=files, shape=shape, features=features)
    return table


def _inception(at):
    from ditbench.extractors.networks.inception import Inception

    net = Inception()
    for module in net.modules():  # activations that neither die nor grow over 94 layers
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.8, 1.2)
            torch.nn.init.uniform_(module.bias, -0.1, 0.1)
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    torch.save(net.state_dict(), at / "weights-inception-2015-12-05-6726825d.pth")
    return {}, dict(extractors()["tf2015"].features)


def _dinov2(at):
    from transformers import Dinov2Config, Dinov2Model

    shape = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 518,
        "patch_size": 14,
    }
    letters = {"q": "query", "k": "key", "v": "value"}
    tensors = {}
    for name, tensor in Dinov2Model(Dinov2Config(**shape)).state_dict().items():
        name = re.sub(
            r"attention\.([qkv])_proj", lambda m: f"attention.attention.{letters[m[1]]}", name
        )
        tensors[name.replace("attention.o_proj", "attention.output.dense")] = (
            tensor + 0.1 * torch.randn_like(tensor)
        )
    save_file(tensors, at / "model.safetensors")
    return shape, {"cls": 16}


def _clip(at):
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPConfig, CLIPModel

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (at / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (at / "merges.txt").write_text("#version: 0.2\n")
    shape = {"projection_dim": 8, "text_config": TEXT, "vision_config": VISION | {"image_size": 28}}
    whole = {k: v | {"projection_dim": 8} for k, v in shape.items() if isinstance(v, dict)}
    whole["text_config"] |= {"vocab_size": len(words)}
    model = CLIPModel(CLIPConfig(projection_dim=8, **whole))
    save_file(_published(model), at / "model.safetensors")
    return shape, {"image": 8, "text": 8}


def _clip_336(at):
    from transformers import CLIPConfig, CLIPModel

    vision = VISION | {"image_size": 42, "projection_dim": 8}
    text = TEXT | {"vocab_size": 50, "projection_dim": 8}
    model = CLIPModel(CLIPConfig(projection_dim=8, text_config=text, vision_config=vision))
    torch.save(_published(model), at / "pytorch_model.bin")
    return {"projection_dim": 8, "vision_config": VISION | {"image_size": 42}}, {"image": 8}


def _published(model):
    """The state dict as the files of 2022 hold it: with positions among the weights."""
    tensors = {
        name: tensor + 0.1 * torch.randn_like(tensor) for name, tensor in model.state_dict().items()
    }
    return tensors | {
        name: tensor for name, tensor in model.named_buffers() if name.endswith("position_ids")
    }


WRITERS = {
    "tf2015": _inception,
    "dinov2_l14": _dinov2,
    "openai_vit_l14": _clip,
    "openai_l14_336": _clip_336,
}
