"The end of a script that loads what it needs once and then runs `work` in a process of its own for each line it reads."

FORK_EACH_LINE = """
import os, sys, traceback

for line in sys.stdin:  # says the number of the new process and, when that has ended, how
    child = os.fork()
    if not child:
        status = 1
        try:
            work(*line.split())
            status = 0
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
