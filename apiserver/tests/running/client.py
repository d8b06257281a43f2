"""exec, attach and port-forward with the Python client: KUBECONFIG PORT, the port being one that echoes."""
import sys

from kubernetes import client, config
from kubernetes.stream import portforward, stream

config.load_kube_config(sys.argv[1])
port = int(sys.argv[2])
api = client.CoreV1Api()


def program(command, **options):
    return stream(api.connect_get_namespaced_pod_exec, "web", "default", command=command, stdout=True, stderr=True,
                  tty=False, **options)


assert sorted(program(["sh", "-c", "echo out; echo err >&2; exit 3"], stdin=False).split()) == ["err", "out"]

process = program(["head", "-c", "3000000"], stdin=True, _preload_content=False, binary=True)
process.write_stdin(b"x" * 3000000)
back = b""
while process.is_open():
    process.update(timeout=5)
    if process.peek_stdout():
        back += process.read_stdout()
assert back + (process.read_stdout() or b"") == b"x" * 3000000, len(back)
assert process.returncode == 0, process.returncode

process = program(["sh"], stdin=True, _preload_content=False)
process.write_stdin("echo hello; exit 4\n")
process.run_forever(timeout=10)
assert process.read_stdout() == "hello\n"
assert process.returncode == 4, process.returncode

process = stream(api.connect_get_namespaced_pod_attach, "web", "default", stdin=True, stdout=True, stderr=True, tty=False,
                 _preload_content=False)
process.write_stdin("attached")
assert process.read_stdout(timeout=5) == "attached"
process.close()

ports = portforward(api.connect_get_namespaced_pod_portforward, "web", "default", ports=str(port))
connection = ports.socket(port)
connection.setblocking(True)
connection.sendall(b"hello" * 1000)
back = b""
while len(back) < 5000:
    back += connection.recv(65536)
assert back == b"hello" * 1000
connection.close()
