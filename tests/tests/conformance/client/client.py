"""Carries out the cases' actions with the Python client: a step as JSON in each line of input, an outcome in each of output.

An outcome is {"code", "reason", "message", "object"}, or null for what this client has no way to say.
"""

import json
import sys

from kubernetes import client, config, dynamic, watch
from kubernetes.client.exceptions import ApiException

PATCHES = {
    "json": "application/json-patch+json",
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
}
# The client's names of query parameters.
NAMES = {
    "continue": "_continue",
    "labelSelector": "label_selector",
    "fieldSelector": "field_selector",
    "limit": "limit",
    "resourceVersion": "resource_version",
    "resourceVersionMatch": "resource_version_match",
    "timeoutSeconds": "timeout_seconds",
    "propagationPolicy": "propagation_policy",
    "dryRun": "dry_run",
    "fieldManager": "field_manager",
    "allowWatchBookmarks": "allow_watch_bookmarks",
    "sendInitialEvents": "send_initial_events",
}


class Unsayable(Exception):
    """This client has no way to say it."""


def query(step):
    """The step's parameters in the client's names."""
    given = step.get("with") or {}
    if any(name not in NAMES for name in given if name != "force"):
        raise Unsayable
    return {NAMES[name]: value for name, value in given.items() if name != "force"}


def act(api, dynamics, step):
    """Does what a step says and answers the object that comes back."""
    action = step["do"]
    if action == "request":
        return request(api, step)
    if action == "typed":
        owner, method = step["call"].split(".")
        answer = getattr(getattr(client, owner)(api), method)(**(step.get("with") or {}))
        return api.sanitize_for_serialization(answer)
    resource = dynamics.resources.get(api_version=step["apiVersion"], kind=step["kind"])
    if step.get("subresource"):
        resource = getattr(resource, step["subresource"])
    where = {"namespace": step["namespace"]} if step["namespaced"] else {}
    if step.get("name"):
        where["name"] = step["name"]
    parameters = query(step)
    body = step.get("body")
    if action in ("get", "list"):
        answer = resource.get(**where, **parameters)
    elif action == "create":
        where.pop("name", None)
        answer = resource.create(body=body, **where, **parameters)
    elif action == "update":
        answer = resource.replace(body=body, **where, **parameters)
    elif action == "patch":
        answer = resource.patch(body=body, content_type=PATCHES[step["patch"]], **where, **parameters)
    elif action == "apply":
        force = (step.get("with") or {}).get("force")
        answer = resource.server_side_apply(body=body, force_conflicts=force, **where, **parameters)
    elif action == "delete":
        answer = resource.delete(body=body, **where, **parameters)
    elif action == "deletecollection":
        parameters.setdefault("label_selector", "")
        if not (parameters["label_selector"] or parameters.get("field_selector")):
            raise Unsayable
        answer = resource.delete(body=body, **where, **parameters)
    elif action == "watch":
        timeout = parameters.pop("timeout_seconds", 1)
        events = [
            {"type": event["type"], "object": event["raw_object"]}
            for event in resource.watch(timeout=timeout, watcher=watch.Watch(), **where, **parameters)
        ]
        return {"events": events}
    else:
        raise Unsayable
    return answer.to_dict()


def request(api, step):
    """A request as it goes over the wire."""
    headers = dict(step.get("headers") or {})
    headers.setdefault("Accept", "application/json")
    configuration = api.configuration
    url = configuration.host + step["path"]
    body = step.get("body")
    if body is not None:
        headers.setdefault("Content-Type", "application/json")
        body = body if isinstance(body, str) else json.dumps(body)
    pool = api.rest_client.pool_manager
    response = pool.request(step["method"], url, body=body, headers={**headers, **bearer(configuration)})
    text = response.data.decode()
    if response.status >= 400:
        raise Refused(response.status, text)
    lines = [json.loads(line) for line in text.splitlines() if line] if "watch=" in step["path"] else None
    return {"events": lines} if lines is not None else json.loads(text) if text.startswith("{") else {"text": text}


def bearer(configuration):
    """The token, if the administrator has one instead of a certificate."""
    token = configuration.get_api_key_with_prefix("authorization") or configuration.get_api_key_with_prefix("BearerToken")
    return {"Authorization": token} if token else {}


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status, body):
        super().__init__(body)
        self.status, self.body = status, body


def outcome(api, dynamics, step):
    """What became of a step."""
    try:
        return {"code": None, "object": act(api, dynamics, step)}
    except Unsayable:
        return None
    except (ApiException, Refused, dynamic.exceptions.DynamicApiError) as error:
        body = error.body.decode() if isinstance(error.body, bytes) else error.body
        try:
            status = json.loads(body or "{}")
        except ValueError:
            status = {"message": body}
        return {"code": error.status, "reason": status.get("reason"), "message": status.get("message"), "object": status}


def main():
    """Answers line by line."""
    api = config.new_client_from_config(sys.argv[1])
    dynamics = dynamic.DynamicClient(api, cache_file=sys.argv[2])
    for line in sys.stdin:
        print(json.dumps(outcome(api, dynamics, json.loads(line))), flush=True)


main()
