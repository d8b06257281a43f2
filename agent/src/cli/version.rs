//! `nodelet version`

use serde_json::{Value, json};

use super::output::Output;
use super::{Global, Outcome, session};

pub(crate) async fn version(global: &Global, output: &Output) -> anyhow::Result<Outcome> {
    let own = env!("CARGO_PKG_VERSION");
    let server = match session::client(global).await {
        Ok(client) => {
            client.send(http::Method::GET, "/version", &[], Value::Null).await.map_err(|error| error.to_string())
        }
        Err(error) => Err(error.to_string()),
    };
    let told = json!({
        "client": own,
        "server": server.as_ref().map_or(Value::Null, |version| version["gitVersion"].clone()),
    });
    if output.structured(&told)? {
        return Ok(Outcome::Done);
    }
    output.line(format!("client {own}"))?;
    match server {
        Ok(version) => output.line(format!("server {}", version["gitVersion"].as_str().unwrap_or("unknown")))?,
        Err(error) => output.note(&format!("server: {error}")),
    }
    Ok(Outcome::Done)
}
