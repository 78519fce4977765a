"""How much faster captions are generated with the cache of keys and values than without, A B A B in one run.

    python experiments/benchmarks/decode.py --model coca_vit_b32 --batch 4 --length 76 --json -

Every token is computed, as random weights hardly ever end a caption; the image is encoded in both.
"""

from __future__ import annotations

import argparse
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax import config, models
from vit_jax.bench.timing import alternate
from vit_jax.cli import output
from vit_jax.decoding import DECODERS, generate


def uncached(model: Any, params: Any, image: jax.Array, start: int, end: int, pad: int, length: int) -> jax.Array:
    """Greedy decoding that runs the whole caption through the model for each token."""
    memory = model.apply({"params": params}, image, method="encode")[1]
    ids = jnp.arange(model.text_tower.vocab_size)
    banned = ((ids == start) | (ids == pad))[None]

    def body(carry: Any) -> Any:
        at, text, ended = carry
        logits = model.apply({"params": params}, text[:, :-1], memory, method="caption_logits")
        last = jax.lax.dynamic_index_in_dim(logits, at - 1, axis=1, keepdims=False)
        token = jnp.argmax(jnp.where(banned, -jnp.inf, last), axis=-1).astype(jnp.int32)
        token = jnp.where(ended, pad, token)
        return at + 1, jax.lax.dynamic_update_index_in_dim(text, token, at, axis=1), ended | (token == end)

    text = jnp.full((len(image), length), pad, jnp.int32).at[:, 0].set(start)
    first = (jnp.int32(1), text, jnp.zeros(len(image), bool))
    return jax.lax.while_loop(lambda c: (c[0] < length) & ~jnp.all(c[2]), body, first)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="coca_vit_b32", help="a CoCa (default coca_vit_b32)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--batch", type=int, default=4, help="images (default 4)")
    parser.add_argument("--size", type=int, default=224, help="side of the image (default 224)")
    parser.add_argument("--length", type=int, default=76, help="tokens of a caption (default 76)")
    parser.add_argument("--decoder", default="greedy", help="compared with greedy decoding without a cache")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of measurements (default 5)")
    parser.add_argument("--json", metavar="FILE", help="write the result there, - for the terminal")
    args = parser.parse_args()

    model = models.replace_in_towers(models.create(args.model), dtype=args.dtype)
    decoder = config.parse(Annotated[Any, config.Choice(DECODERS)], args.decoder, "--decoder")
    image = jax.random.normal(jax.random.key(0), (args.batch, args.size, args.size, 3))
    text = jnp.zeros((1, model.text_tower.length), jnp.int32)
    params = jax.jit(lambda: nn.unbox(model.init(jax.random.key(1), image[:1], text)["params"]))()
    vocabulary = model.text_tower.vocab_size
    ids = {"start": vocabulary - 2, "end": vocabulary - 1, "pad": 0}

    def apply(params: Any, *inputs: Any, **options: Any) -> Any:
        return model.apply({"params": params}, *inputs, **options)

    named = {f"{name}_id": i for name, i in ids.items()}
    fast = jax.jit(lambda p, x: generate(apply, p, x, length=args.length, decoder=decoder, **named).tokens)
    slow = jax.jit(lambda p, x: uncached(model, p, x, length=args.length, **ids))
    run = {"cached": lambda: fast(params, image), "uncached": lambda: slow(params, image)}
    times = alternate(run, args.rounds)
    result = {
        "model": f"{args.model} {args.dtype}, {args.batch} images, {args.length} tokens, {args.decoder}",
        "tokens generated": int((fast(params, image) != 0).sum()),
        "cached tokens/s": args.batch * (args.length - 1) / times["cached"].median,
        "uncached tokens/s": args.batch * (args.length - 1) / times["uncached"].median,
        **times["cached"].compared("times faster", times["uncached"]),
        "same captions": bool((fast(params, image) == slow(params, image)).all()),
    }
    if args.json != "-":
        for key, value in result.items():
            print(f"{key:34s} {value:.4g}" if isinstance(value, float) else f"{key:34s} {value}")
    output.write(args.json, result)


if __name__ == "__main__":
    main()
