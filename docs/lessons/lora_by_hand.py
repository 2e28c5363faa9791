"""Lesson 1: LoRA on paper. Fill in the numbers; python -m pytest docs/lessons/test_01_lora.py

A linear map without a bias has W [2, 3]. LoRA of rank r = 1 and α = 2 stands beside it:

    y = W x + (α / r) B (A x)        A [1, 3], B [2, 1]

Everything below is one token. Use a pencil; `None` is what is missing.
"""

W = [[1.0, 0.0, 2.0],
     [0.0, 3.0, -1.0]]
A = [[0.5, -1.0, 2.0]]
X = [2.0, 1.0, 3.0]
B_START = [[0.0], [0.0]]
B_TRAINED = [[1.0], [-0.5]]
GRAD_Y = [1.0, 2.0]  # the gradient of the loss to y

Y_START = None  # y with B_START: two numbers
Y_TRAINED = None  # y with B_TRAINED
W_MERGED = None  # the plain map [2, 3] that gives the same y as W with A and B_TRAINED
GRAD_B_START = None  # the gradient to B [2, 1] at B_START
GRAD_A_START = None  # the gradient to A [1, 3] at B_START: why does A not move in the first step?
PARAMETERS = None  # numbers that train, for a map of 896 × 4864 with rank 16
