"""Helpers of the tests; no test module imports another.

| module | for |
|---|---|
| ``options`` | the one small option file: ``SMALL``, ``write_small``, its parts as dicts, as train.py completes it |
| ``programs`` | ``code_of``, ``run``, ``main_of``, ``python``; ``logs_of``, ``difference``; the fixture ``refused`` |
| ``images`` | pixels and files: ``noise``, ``write_noise``, ``write_pairs``; damage; the fixture ``image_folder`` |
| ``networks`` | small networks, files of them, and losses |
| ``models`` | small models and their steps |
| ``validation`` | a small model that validates on five images |
| ``stream`` | the training stream on ``pairs`` |
| ``processes`` | processes forked from one that has imported torch, and waiting for them; torchrun |
| ``gpu`` | the device of the running test: CPU, GPU or imitated GPU |
| ``fuzz`` | generated tests: how many inputs, the seed, and the judge of messages |
"""
