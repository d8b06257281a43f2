//! Who we are to a registry: bearer tokens, basic authentication, refresh tokens.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use oci_spec::distribution::Reference;
use reqwest::{Client, Response};
use serde::Deserialize;

use super::answer::{classify, unreachable};
use super::{Failure, failed};
use crate::images::Credentials;
use crate::images::hosts::Endpoint;

/// A user name that says that the password is a refresh token, as Docker's credential helpers have it.
pub(in crate::images) const TOKEN_USER: &str = "<token>";

/// Tokens are kept for so many repositories.
const KEPT: usize = 256;

/// Whose token.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    endpoint: Endpoint,
    repository: String,
    credentials: Option<Credentials>,
}

impl Key {
    pub(super) fn new(endpoint: &Endpoint, repository: &str, credentials: Option<&Credentials>) -> Self {
        Self { endpoint: endpoint.clone(), repository: repository.to_owned(), credentials: credentials.cloned() }
    }
}

/// The values of `Authorization` that servers took, by whom they are for.
#[derive(Clone, Default)]
pub(super) struct Tokens {
    known: Arc<Mutex<HashMap<Key, HeaderValue>>>,
}

/// What a server wants.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Basic,
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

impl Tokens {
    /// What the server took last.
    pub(super) fn known(&self, key: &Key) -> Option<HeaderValue> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Gets what the refusal asks for; false when there is nothing new to try. The old token is forgotten: it may
    /// just have expired.
    pub(super) async fn renew(
        &self,
        client: &Client,
        key: &Key,
        credentials: Option<&Credentials>,
        refusal: &Response,
        reference: &Reference,
    ) -> Result<bool, Failure> {
        let before = self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        let challenges = refusal.headers().get_all(WWW_AUTHENTICATE).iter();
        let Some(challenge) = challenges.filter_map(|value| parse(value.to_str().ok()?)).next_back() else {
            return Ok(false);
        };
        let value = match (&challenge, credentials) {
            (Challenge::Bearer { realm, service, scope }, _) => {
                let scope = scope.clone().unwrap_or_else(|| format!("repository:{}:pull", reference.repository()));
                let token = fetch(client, realm, service.as_deref(), &scope, credentials, reference).await?;
                format!("Bearer {token}")
            }
            (Challenge::Basic, Some(credentials)) => basic(credentials),
            (Challenge::Basic, None) => return Ok(false),
        };
        let mut value =
            HeaderValue::from_str(&value).map_err(|e| failed(format!("using the token for {reference}"), e))?;
        value.set_sensitive(true);
        // The same password once more would be refused once more.
        if challenge == Challenge::Basic && before.as_ref() == Some(&value) {
            return Ok(false);
        }
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= KEPT {
            known.clear();
        }
        known.insert(key.clone(), value);
        Ok(true)
    }
}

fn basic(credentials: &Credentials) -> String {
    format!("Basic {}", STANDARD.encode(format!("{}:{}", credentials.username, credentials.password)))
}

/// Asks the token server.
async fn fetch(
    client: &Client,
    realm: &str,
    service: Option<&str>,
    scope: &str,
    credentials: Option<&Credentials>,
    reference: &Reference,
) -> Result<String, Failure> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let doing = || format!("asking {realm} for a token for {reference}");
    let scope = [("service", service.unwrap_or_default()), ("scope", scope)];
    let scope = scope.into_iter().filter(|(_, value)| !value.is_empty());
    let request = match credentials {
        Some(Credentials { username, password }) if username == TOKEN_USER => {
            let grant = [("grant_type", "refresh_token"), ("client_id", "nodelet"), ("refresh_token", password)];
            let form = encode(scope.chain(grant));
            client.post(realm).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form)
        }
        _ => {
            let separator = if realm.contains('?') { '&' } else { '?' };
            let request = client.get(format!("{realm}{separator}{}", encode(scope)));
            match credentials {
                Some(credentials) => request.basic_auth(&credentials.username, Some(&credentials.password)),
                None => request,
            }
        }
    };
    let answer = request.send().await.map_err(|e| unreachable(doing(), e))?;
    let answer = classify(answer, reference, realm).await?;
    let bytes = answer.bytes().await.map_err(|e| unreachable(doing(), e))?;
    // The parser's own message could quote a secret.
    let answer: Answer = serde_json::from_slice(&bytes)
        .map_err(|_| failed(doing(), std::io::Error::other("its answer is not the JSON of a token")))?;
    let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
    Ok(token.ok_or_else(|| failed(doing(), std::io::Error::other("its answer has no token")))?)
}

fn encode<'a>(pairs: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
}

/// `Bearer realm="…",service="…",scope="…"` or `Basic realm="…"`; values may hold commas.
fn parse(text: &str) -> Option<Challenge> {
    let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut parameters = HashMap::new();
    while let Some((name, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        parameters.insert(name.trim_matches([' ', ',']).to_ascii_lowercase(), value.to_owned());
        rest = after;
    }
    Some(Challenge::Bearer {
        realm: parameters.remove("realm")?,
        service: parameters.remove("service"),
        scope: parameters.remove("scope"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
            scope: scope.map(str::to_owned),
        };
        for (text, expected) in [
            ("Basic realm=\"x\"", Some(Challenge::Basic)),
            ("basic", Some(Challenge::Basic)),
            (
                "Bearer realm=\"https://a/t\",service=\"s\",scope=\"repository:a/b:pull,push\"",
                Some(bearer("https://a/t", Some("s"), Some("repository:a/b:pull,push"))),
            ),
            ("bearer  Realm=https://a/t, service=s", Some(bearer("https://a/t", Some("s"), None))),
            ("Bearer service=\"s\"", None),
            ("Bearer realm=\"open", None),
            ("Negotiate abc", None),
            ("", None),
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
    }
}
