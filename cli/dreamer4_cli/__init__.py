"""The command line of dreamer4.

`app` reads the command line and resolves a configuration; `run` does the work with the library. Nothing heavy is
imported until a command's body runs, so that `--help` answers at once. The library never imports this package.
"""
