//! Reading objects through the API's socket, and the few questions about them that tests ask again and again.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::{Node, RUN};

impl Node {
    /// An object of group nodelet.dev in namespace `default`, or nothing if there is none.
    pub fn object(&self, plural: &str, name: &str) -> Result<Option<Value>> {
        self.get(&format!("/apis/nodelet.dev/v1alpha1/namespaces/default/{plural}/{name}"))
    }

    /// What the API holds at a path, or nothing on 404.
    pub fn get(&self, path: &str) -> Result<Option<Value>> {
        self.ask("GET", path, "")
    }

    /// Changes an object by a JSON merge patch, and answers what it is then.
    pub fn patch(&self, path: &str, change: &Value) -> Result<Value> {
        self.ask("PATCH", path, &change.to_string())?.with_context(|| format!("nothing at {path}"))
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> Result<Option<Value>> {
        let mut socket = UnixStream::connect(self.namespaces.path(RUN).join("api.sock")).context("the API's socket")?;
        socket.set_read_timeout(Some(Duration::from_secs(10)))?;
        // HTTP/1.0: the answer comes in one piece and ends with the connection.
        let request = format!(
            "{method} {path} HTTP/1.0\r\nHost: localhost\r\nAccept: application/json\r\nContent-Type: \
             application/merge-patch+json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        socket.write_all(request.as_bytes())?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an answer without an end of its head")?;
        let status = head.split(' ').nth(1).context("an answer without a status")?;
        match status {
            "200" => Ok(Some(serde_json::from_str(body)?)),
            "404" => Ok(None),
            _ => anyhow::bail!("{method} {path}: {status} {body}"),
        }
    }
}

/// Whether condition `Ready` is true for the newest generation.
pub fn ready(object: &Value) -> bool {
    let generation = &object["metadata"]["generation"];
    let current = object["status"]["observedGeneration"] == *generation;
    // With StartFirst the old revision is ready while the new one comes up.
    let progressing = condition(object, "Progressing").is_some_and(|condition| condition["status"] == "True");
    current && !progressing && condition(object, "Ready").is_some_and(|condition| condition["status"] == "True")
}

/// A condition by its type.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"].as_array()?.iter().find(|condition| condition["type"] == kind)
}

/// containerd's id of a Workload's first container, without the scheme that Kubernetes puts before it.
pub fn container_id(workload: &Value) -> Option<String> {
    let id = workload["status"]["containerStatuses"][0]["containerID"].as_str()?;
    Some(id.rsplit('/').next().unwrap_or(id).to_owned())
}

/// Restarts of a Workload's first container.
pub fn restarts(workload: &Value) -> u64 {
    workload["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(0)
}
