"""Run `sparse.py`: sparse kernels against torch's dense ones and onnxruntime.

    python benchmarks/kernels.py [--runs 9] [--threads 2] [--amounts 0.55 0.8 0.9]
        [--only parts|voices] [--voices NAME=DIR ...]

Beside other benchmarks transformers takes this file for a package named "kernels", and imports it
when it looks for that: so there is nothing else here.
"""

if __name__ == "__main__":
    from sparse import main

    main()
