"""A throw-away Linux guest whose kernel, init, cgroup mode, user and cgroup are chosen; it runs one command.

Theory of operation.  The kernel is user-mode Linux: a plain process, so neither KVM nor root nor emulation is needed,
and a boot takes seconds.  The root disk is a Debian image, never written to (a copy-on-write file takes the changes).
The second disk is the job: a tar with the command, the script that puts it in its place, and copied trees.  The guest
prints the command's output on its first console, then one line with a random token and the exit status, and powers
off.  On the host the whole guest lives in a PID namespace that dies with the rig, however the rig dies.
"""
