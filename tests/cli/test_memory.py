"""Memory that is freed stays with the process, where the C library can be told so."""

import platform
import subprocess
import sys
import textwrap

import pytest


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the switch")
def test_a_large_block_that_is_freed_and_asked_for_again_costs_no_page_faults():
    script = """
        import resource
        from dreamer4_cli import memory

        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(5):
                block = bytearray(64 << 20)
                del block
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        plain = faults()
        assert memory.keep_freed()
        faults()  # the first time it is taken from the system
        print(plain, faults())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
    plain, kept = map(int, done.stdout.split())
    assert kept < 0.1 * plain
