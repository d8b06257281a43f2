//! Reading many objects: selectors, and pages that together show one moment.

use axum::body::Body;
use base64::Engine;
use http::Response;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::represent::{self, Page};
use crate::request::{Context, Query, Target};
use crate::selector::Selector;
use crate::server::Inner;
use crate::status::{ApiError, FieldError};
use crate::store::Key;

/// Where the next page starts.
#[derive(Serialize, Deserialize)]
struct Token {
    rv: u64,
    namespace: String,
    name: String,
}

const BASE64: base64::engine::GeneralPurpose = base64::engine::general_purpose::URL_SAFE_NO_PAD;

impl Token {
    fn encode(&self) -> String {
        BASE64.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    fn decode(text: &str) -> Result<Self, ApiError> {
        let parsed = BASE64.decode(text).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        parsed.ok_or_else(|| ApiError::bad_request("continue key is not valid"))
    }
}

/// Refuses parameters of a list or a watch that do not go together.
pub(crate) fn check_options(query: &Query, watch: bool) -> Result<(), ApiError> {
    let field = "resourceVersionMatch";
    let forbidden = |detail: &str| FieldError::forbidden(field, detail);
    let wanted = query.get(field);
    let streams = query.get("sendInitialEvents").is_some();
    let mut errors = Vec::new();
    if watch && streams && wanted != Some("NotOlderThan") {
        errors.push(forbidden("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"));
    }
    if let Some(wanted) = wanted {
        let from = query.text("resourceVersion");
        if watch && !streams {
            errors.push(forbidden("resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"));
        }
        if !watch && from.is_empty() {
            errors.push(forbidden("resourceVersionMatch is forbidden unless resourceVersion is provided"));
        }
        if query.get("continue").is_some() {
            errors.push(forbidden("resourceVersionMatch is forbidden when continue is provided"));
        }
        let allowed = if watch { vec!["NotOlderThan"] } else { vec!["Exact", "NotOlderThan", ""] };
        if !allowed.contains(&wanted) {
            let allowed: Vec<Value> = allowed.into_iter().map(Value::from).collect();
            errors.push(FieldError::unsupported(field, &Value::from(wanted), &allowed));
        }
        if !watch && wanted == "Exact" && from == "0" {
            errors.push(forbidden("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""));
        }
    }
    if !watch && streams {
        errors.push(FieldError::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    match errors.is_empty() {
        true => Ok(()),
        false => Err(ApiError::invalid_options("ListOptions", &errors)),
    }
}

pub(crate) fn list(inner: &Inner, context: &Context, target: &Target<'_>) -> Result<Response<Body>, ApiError> {
    let resource = target.resource;
    let query = &context.query;
    let selector = Selector::parse(resource, query.text("labelSelector"), query.text("fieldSelector"))?;
    check_options(query, false)?;
    let limit = query.number("limit")?.filter(|limit| *limit > 0);
    let token = query.get("continue").map(Token::decode).transpose()?;
    let wanted = query.number("resourceVersion")?.filter(|rv| *rv > 0);
    let namespace = target.namespace.as_deref();
    let (mut rv, mut items) = {
        let state = inner.store.read();
        (state.rv, state.list(resource.table, namespace))
    };
    if wanted.is_some_and(|wanted| wanted > rv) {
        return Err(ApiError::new(
            504,
            "Timeout",
            format!("Too large resource version: {}, current: {rv}", wanted.unwrap_or_default()),
        ));
    }
    let exact = wanted.filter(|_| query.get("resourceVersionMatch") == Some("Exact") && token.is_none());
    if let Some(at) = token.as_ref().map(|t| t.rv).or(exact) {
        items = inner.store.list_at(resource.table, namespace, at).map_err(|oldest| match &token {
            None => ApiError::expired(at, oldest),
            Some(_) => ApiError::new(
                410,
                "Expired",
                "The provided continue parameter is too old to display a consistent list result. You must start a \
                 new list without the continue parameter.",
            ),
        })?;
        rv = at;
    }
    if let Some(token) = &token {
        let last = Key::new(&token.namespace, &token.name);
        items.retain(|item| item.key > last);
    }
    if !selector.is_everything() {
        items.retain(|item| selector.matches(item));
    }
    let mut page = Page { rv, ..Page::default() };
    if let Some(limit) = limit.map(|limit| usize::try_from(limit).unwrap_or(usize::MAX))
        && items.len() > limit
    {
        // Clients rely on the count only where it is exact, which with a selector it need not be.
        page.remaining = selector.is_everything().then_some(items.len() - limit);
        items.truncate(limit);
        page.next = items.last().map(|last| {
            Token { rv, namespace: last.key.namespace.to_string(), name: last.key.name.to_string() }.encode()
        });
    }
    Ok(represent::list(&inner.registry, context, resource, items, &page))
}
