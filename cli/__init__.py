"""The `kgen` command, installed as the package `kgen_cli`."""
