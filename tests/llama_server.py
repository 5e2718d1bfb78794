"""llama.cpp's own server as a program of its own: prints its address, and ends when its input does."""

import sys

import xllamacpp

parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[1]
parameters.n_ctx = 1024
parameters.n_gpu_layers = 0
parameters.n_parallel = 1
parameters.cpuparams.n_threads = 1
parameters.port = 0
parameters.warmup = False
parameters.verbosity = 0
server = xllamacpp.Server(parameters)
print(server.listening_address, flush=True)
sys.stdin.read()
