//! What every command that talks to the API has at hand.

use anyhow::Context as _;
use serde_json::Value;

use super::output::Output;
use super::{Global, Usage};
use crate::client::{Client, Kind, Kinds, connect};
use crate::config::{self, NodeletConfiguration};

/// A connection, the kinds behind it, and the flags that matter.
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) kinds: Kinds,
    pub(crate) namespace: String,
    pub(crate) output: Output,
}

/// Connects as the flags say.
pub(crate) async fn open(global: &Global, output: &Output) -> anyhow::Result<Session> {
    let client = client(global).await?;
    let kinds = Kinds::load(&client).await.context("asking the API for its kinds")?;
    let namespace = global.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
    Ok(Session { client, kinds, namespace, output: output.clone() })
}

/// Connects, and asks nothing yet.
pub(crate) async fn client(global: &Global) -> anyhow::Result<Client> {
    let socket = configuration(global).map_or_else(|_| NodeletConfiguration::default().socket(), |c| c.socket());
    let server = connect::choose(global.server.as_deref(), global.kubeconfig.as_deref(), socket)
        .map_err(|error| Usage(error.to_string()))?;
    Ok(Client::new(connect::connect(&server).await?))
}

/// The configuration that the flags and the environment name.
pub(crate) fn configuration(global: &Global) -> Result<NodeletConfiguration, config::Error> {
    let path = global.config.as_deref();
    let overrides = config::from_environment(variables());
    config::load(path.unwrap_or(config::DEFAULT_PATH.as_ref()), path.is_some(), &overrides)
}

/// The environment, as far as it is text.
pub(crate) fn variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

impl Session {
    /// The namespace in a path for objects of `kind`.
    pub(crate) fn namespace_of<'a>(&'a self, kind: &Kind) -> Option<&'a str> {
        kind.namespaced.then_some(self.namespace.as_str())
    }

    /// Takes `KIND NAME…` and `KIND/NAME …` apart.
    pub(crate) fn named(&self, words: &[String]) -> anyhow::Result<Vec<(&Kind, String)>> {
        let Some(first) = words.first() else {
            return Err(Usage("expected KIND NAME or KIND/NAME".to_owned()).into());
        };
        if first.contains('/') {
            return words
                .iter()
                .map(|word| match word.split_once('/') {
                    Some((kind, name)) if !name.is_empty() => Ok((self.kinds.named(kind)?, name.to_owned())),
                    _ => Err(Usage(format!("{word:?} is not KIND/NAME")).into()),
                })
                .collect();
        }
        let kind = self.kinds.named(first)?;
        Ok(words[1..].iter().map(|name| (kind, name.clone())).collect())
    }

    /// One object that has to be there.
    pub(crate) async fn object(&self, kind: &Kind, name: &str) -> anyhow::Result<Value> {
        let namespace = self.namespace_of(kind);
        let found = self.client.get(kind, namespace, name).await?;
        found.with_context(|| match namespace {
            Some(namespace) => format!("{} {name:?} not found in namespace {namespace}", kind.plural),
            None => format!("{} {name:?} not found", kind.plural),
        })
    }
}
