"""The methods that come with ditbench. A method is imported when it is asked for."""

BUILT_IN: dict[str, str] = {
    "delta_dit": "ditbench.methods.delta_dit:DeltaDit",
    "distill": "ditbench.methods.distill:Distill",
    "duca": "ditbench.methods.duca:Duca",
    "diffsparse": "ditbench.methods.diffsparse:DiffSparse",
    "fastercache": "ditbench.methods.fastercache:FasterCache",
    "fewer_steps": "ditbench.methods.fewer_steps:FewerSteps",
    "firstblock": "ditbench.methods.firstblock:FirstBlock",
    "fora": "ditbench.methods.fora:Fora",
    "fp8": "ditbench.methods.fp8:Fp8",
    "int4wo": "ditbench.methods.int4wo:Int4Wo",
    "int8": "ditbench.methods.int8:Int8",
    "int8wo": "ditbench.methods.int8wo:Int8Wo",
    "l2c": "ditbench.methods.l2c:L2C",
    "magcache": "ditbench.methods.magcache:MagCache",
    "pab": "ditbench.methods.pab:Pab",
    "rerun": "ditbench.methods.rerun:Rerun",
    "taylorseer": "ditbench.methods.taylorseer:TaylorSeer",
    "teacache": "ditbench.methods.teacache:TeaCache",
    "toca": "ditbench.methods.toca:Toca",
}
"""Name -> "module:Class"."""
