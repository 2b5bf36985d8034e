"""Memory that is freed stays with the process, where the C library can be told so."""

import platform
import subprocess
import sys
import textwrap

import pytest


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the switch")
@pytest.mark.parametrize("megabytes", [24, 64, 200])
@pytest.mark.parametrize("where", ["the first thread", "another thread"])
def test_a_large_block_that_is_freed_and_asked_for_again_costs_no_page_faults(megabytes, where):
    script = f"""
        import resource
        from concurrent.futures import ThreadPoolExecutor
        from dreamer4 import allocator

        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(5):
                block = bytearray({megabytes} << 20)
                del block
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        plain = faults()
        assert allocator.keep_freed()
        run = ThreadPoolExecutor(1).submit if {where == "another thread"} else None
        counts = [run(faults).result() if run else faults() for _ in range(2)]
        print(plain, counts[1])  # the first time it is taken from the system
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=300)
    plain, kept = map(int, done.stdout.split())
    assert kept < 0.1 * plain


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the switch")
def test_a_command_keeps_what_threads_free_that_start_while_it_runs(tmp_path):
    (tmp_path / "measure.py").write_text(
        textwrap.dedent("""
        import resource
        from concurrent.futures import ThreadPoolExecutor

        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(5):
                bytearray(200 << 20)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

        def counted():
            with ThreadPoolExecutor(1) as pool:
                return [pool.submit(faults).result() for _ in range(2)]

        print("faults", *counted(), *counted())
        """)
    )
    command = [sys.executable, "-m", "dreamer4_cli", "--import", "measure", "config", "show", "--preset", "tiny"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    _, first, *kept = next(line for line in done.stdout.splitlines() if line.startswith("faults")).split()
    assert max(map(int, kept)) < 0.1 * int(first)
