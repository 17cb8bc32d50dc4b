"""deploy/: the API server takes every manifest, strictly; and what they say works: the controller with its own arguments and no more rights than its Role gives it."""
import json
import subprocess
import time

import plane as planes
from lib import procs

DEPLOY = procs.ROOT / "deploy"
VARIANTS = {
    "plain": [],
    "everything": ["--set", "ingester.autoscaling.enabled=true,router.autoscaling.enabled=true,control.azAware=true,control.nodeZones=true,control.manual=keep",
                   "--set", "ingester.persistence.storageClass=fast,router.service.type=LoadBalancer,objstore.config.type=S3,imagePullSecrets[0].name=x",
                   "--set-json", 'ingester.tolerations=[{"key":"a","operator":"Exists"}]', "--set-json", 'router.podAnnotations={"a":"b"}',
                   "--set-json", 'control.extraArgs=["--log.level=debug"]'],
    "zones": ["--set-json", 'ingester.sets=[{"name":"a","hashring":"default","zone":"a"},{"name":"b","hashring":"default","zone":"b"}]',
              "--set", "control.azAware=true,ingester.nodeSelector.disk=ssd"],
}


def kubectl(plane, *argv, text=None):
    p = subprocess.run([planes.binary("kubectl"), "--kubeconfig", plane.dir / "kubeconfig", "--cache-dir", plane.dir / "cache", *argv], input=text,
                       capture_output=True, text=True)
    assert p.returncode == 0, p.stderr
    return p.stdout


def kustomized(plane, namespace):
    text = kubectl(plane, "kustomize", str(DEPLOY / "kubernetes"))
    return text.replace("namespace: varve\n", f"namespace: {namespace}\n")


def charted(plane, namespace, *argv):
    p = subprocess.run([planes.binary("helm"), "template", "varve", DEPLOY / "helm" / "varve", "--namespace", namespace, "--kube-version", "1.34.3", *argv],
                       capture_output=True, text=True, env={"HOME": str(plane.dir), "PATH": "/usr/bin:/bin"})
    assert p.returncode == 0, p.stderr
    return p.stdout


def apply(plane, namespace, text, *argv):
    out = kubectl(plane, "apply", "--server-side", "--validate=strict", "-n", namespace, "-o", "json", *argv, "-f", "-", text=text)
    items, at = [], 0
    while at < len(out.rstrip()):
        one, end = json.JSONDecoder().raw_decode(out[at:].lstrip())
        at += len(out[at:]) - len(out[at:].lstrip()) + end
        items += one["items"] if one["kind"] == "List" else [one]
    return items


def test_every_manifest_is_accepted(plane, world):
    kinds = {}
    kinds["kustomize"] = {o["kind"] for o in apply(plane, world.namespace, kustomized(plane, world.namespace), "--dry-run=server")}
    for name, argv in VARIANTS.items():
        kinds[name] = {o["kind"] for o in apply(plane, world.namespace, charted(plane, world.namespace, *argv), "--dry-run=server")}
    must = {"ConfigMap", "Service", "StatefulSet", "Deployment", "PodDisruptionBudget", "ServiceAccount", "Role", "RoleBinding"}
    assert kinds["kustomize"] == must | {"HorizontalPodAutoscaler"}
    assert kinds["plain"] == must | {"Secret"}
    assert kinds["everything"] == must | {"Secret", "HorizontalPodAutoscaler", "ClusterRole", "ClusterRoleBinding"}
    assert len((DEPLOY / "helm" / "varve" / "values.yaml").read_text().splitlines()) <= 300


def test_a_typo_in_a_manifest_would_be_seen(plane, world):
    text = kustomized(plane, world.namespace).replace("publishNotReadyAddresses", "publishNotReadyAdresses")
    try:
        apply(plane, world.namespace, text, "--dry-run=server")
    except AssertionError as e:
        assert "publishNotReadyAdresses" in str(e)
    else:
        raise AssertionError("a misspelt field was taken")


def test_pods_are_as_safe_as_they_can_be(plane, world):
    for text in (kustomized(plane, world.namespace), charted(plane, world.namespace)):
        pods = [o["spec"]["template"]["spec"] for o in apply(plane, world.namespace, text, "--dry-run=server") if o["kind"] in ("StatefulSet", "Deployment")]
        assert len(pods) == 3
        for spec in pods:
            assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
            for c in spec["containers"]:
                s = c["securityContext"]
                assert s["readOnlyRootFilesystem"] and not s["allowPrivilegeEscalation"] and s["capabilities"]["drop"] == ["ALL"]
                assert c["readinessProbe"]["httpGet"]["path"] == "/-/ready" and c["livenessProbe"]["httpGet"]["path"] == "/-/healthy"
                assert c["resources"]["limits"]["memory"]
            # only the controller speaks with the API
            assert ("serviceAccountName" in spec) != (spec.get("automountServiceAccountToken") is False)


def as_deployed(world, items, secret):
    """The controller as its Deployment starts it, but for where this test has things; with the rights of its Role."""
    [control] = [o for o in items if o["kind"] == "Deployment" and o["metadata"]["labels"]["app.kubernetes.io/component"] == "control"]
    [role] = [o for o in items if o["kind"] == "Role"]
    world.api.call("POST", f"/apis/rbac.authorization.k8s.io/v1/namespaces/{world.namespace}/rolebindings", {
        "metadata": {"name": "test"}, "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role["metadata"]["name"]},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "controllers"}]})
    args = control["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[0] == "control"
    flags = dict(a.removeprefix("--").split("=", 1) if "=" in a else (a.removeprefix("--"), "true") for a in args[1:])
    c = world.control("as-deployed", start=False, user="controller")
    place = {k: c.flags[k] for k in ("namespace", "control.kube-url", "control.kube-ca", "control.kube-token-file", "http.address")}
    c.flags = {**flags, **place, "peer.secret-file": secret}
    return c, flags


def runs_as_deployed(plane, world, text, tmp_path, ring_of):
    secret = tmp_path / "secret"
    secret.write_text("open, sesame: a secret")
    items = apply(plane, world.namespace, text)
    control, flags = as_deployed(world, items, secret)
    world.port = int(flags["port"])
    kubelet = world.kubelet_start(secret="open, sesame: a secret")
    control.start()
    generated = flags["configmap-generated-name"]

    def ring():
        m = world.api.find("configmaps", generated)
        return {e if isinstance(e, str) else e["address"] for r in json.loads(m["data"]["hashrings.json"]) for e in r["endpoints"]} if m else set()

    procs.wait_for(lambda: len(ring()) == ring_of, 60, "the ring has its members")
    service = next(o["metadata"]["name"] for o in items if o["kind"] == "Service" and o["spec"].get("clusterIP") == "None")
    assert all(e.split(".")[1:] == [service, world.namespace, "svc", "cluster", f"local:{world.port}"] for e in ring())
    # what an ingester calls itself is what the ring calls it
    [local] = {a.split("=", 1)[1] for o in items if o["kind"] == "StatefulSet" for a in o["spec"]["template"]["spec"]["containers"][0]["args"]
               if a.startswith("--hashrings.local-endpoint=")}
    pod = sorted(e.split(".")[0] for e in ring())[0]
    assert local.replace("$(POD_NAME)", pod).replace("$(POD_NAMESPACE)", world.namespace) in ring()
    # routers are told, too
    routers = [n for n in kubelet.members if "router" in n]
    assert len(routers) == 2
    procs.wait_for(lambda: all(kubelet.members[n].rings for n in routers), 10, "the routers have the ring")
    time.sleep(0.5)
    assert "403" not in control.log(), control.log_tail()
    control.signal(15)
    assert control.wait(15) == 0
    assert "could not be let go" not in control.log()


def test_kustomize_works_as_it_stands(plane, world, tmp_path):
    runs_as_deployed(plane, world, kustomized(plane, world.namespace), tmp_path, 3)


def test_the_chart_works_as_it_stands(plane, world, tmp_path):
    runs_as_deployed(plane, world, charted(plane, world.namespace, *VARIANTS["zones"]), tmp_path, 6)
