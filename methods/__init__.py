"""The methods that come with ditbench. A method is imported when it is asked for."""

BUILT_IN: dict[str, str] = {
    "fewer_steps": "ditbench.methods.fewer_steps:FewerSteps",
    "firstblock": "ditbench.methods.firstblock:FirstBlock",
    "fora": "ditbench.methods.fora:Fora",
    "int8": "ditbench.methods.int8:Int8",
}
"""Name -> "module:Class"."""
