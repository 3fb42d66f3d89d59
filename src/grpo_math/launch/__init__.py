"""How a recipe is run on GPUs: layouts, the plan of processes, and the processes themselves.

A layout's name and a recipe's arguments enter, running commands leave: `accelerate launch` for the training, and a vLLM
server or an evaluation process with it. May import every room, train and sft excepted, which it starts by name.
"""
