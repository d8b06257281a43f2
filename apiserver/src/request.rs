//! What a request asks for: its path, its query, the form of the answer it accepts, and who sent it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Mutex;

use http::{HeaderMap, Method, header};
use percent_encoding::percent_decode_str;
use serde_json::json;

use crate::registry::{Registry, Resource};
use crate::status::{ApiError, FieldError};

/// A caller inside this process. As an extension of a request it marks the request as trusted: it may write what
/// users may only read.
#[derive(Debug, Clone, Copy)]
pub struct Trusted;

/// Who sends a request, as an extension that the listener sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The name; a certificate's common name.
    pub name: String,
    /// The groups; a certificate's organisations.
    pub groups: Vec<String>,
    /// May only read, and no Secrets.
    pub read_only: bool,
}

impl User {
    /// Whoever can open the unix socket, and callers in this process.
    pub fn root() -> Self {
        Self { name: "nodelet:root".into(), groups: vec!["system:masters".into()], read_only: false }
    }
}

/// Decoded query parameters.
#[derive(Debug, Clone, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(text: &str) -> Self {
        let pairs = form_urlencoded::parse(text.as_bytes());
        Self(pairs.map(|(k, v)| (k.into_owned(), v.into_owned())).collect())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str()).filter(|v| !v.is_empty())
    }

    /// Every value of a repeated parameter, empty ones included.
    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self, name: &str) -> &str {
        self.get(name).unwrap_or_default()
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some("true" | "1" | "True" | "TRUE" | "t" | "T"))
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, ApiError> {
        let parse = |text: &str| {
            text.parse().map_err(|_| ApiError::bad_request(format!("Invalid value for parameter {name}: {text:?}")))
        };
        self.get(name).map(parse).transpose()
    }

    pub(crate) fn into_pairs(self) -> Vec<(String, String)> {
        self.0
    }
}

/// In which form objects are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// As they are.
    Object,
    /// `meta.k8s.io/v1` Table.
    Table,
    /// `meta.k8s.io/v1` PartialObjectMetadata.
    Metadata,
}

/// One entry of an `Accept` header.
pub(crate) struct Accepted<'a> {
    pub(crate) media: &'a str,
    pub(crate) parameters: BTreeMap<&'a str, &'a str>,
}

/// The entries of the `Accept` header, in the order given; one for anything if there is none.
pub(crate) fn accepted(headers: &HeaderMap) -> Vec<Accepted<'_>> {
    let text = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).filter(|t| !t.trim().is_empty());
    text.unwrap_or("*/*")
        .split(',')
        .map(|entry| {
            let mut parts = entry.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            Accepted { media, parameters: parts.filter_map(|p| p.split_once('=')).collect() }
        })
        .collect()
}

pub(crate) fn is_json(media: &str) -> bool {
    matches!(media, "application/json" | "application/*" | "*/*")
}

fn form(headers: &HeaderMap) -> Result<Form, ApiError> {
    for entry in accepted(headers).iter().filter(|e| is_json(e.media)) {
        let old_version = entry.parameters.get("v").is_some_and(|v| *v != "v1");
        match entry.parameters.get("as").copied() {
            None => return Ok(Form::Object),
            Some(_) if old_version => {}
            Some("Table") => return Ok(Form::Table),
            Some("PartialObjectMetadata" | "PartialObjectMetadataList") => return Ok(Form::Metadata),
            Some(_) => {}
        }
    }
    Err(ApiError::not_acceptable("application/json"))
}

/// How unknown and duplicate fields are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// The kind of the parameters of a request.
fn options_of(method: &Method) -> &'static str {
    match method.as_str() {
        "POST" => "CreateOptions",
        "PUT" => "UpdateOptions",
        "PATCH" => "PatchOptions",
        "DELETE" => "DeleteOptions",
        _ => "ListOptions",
    }
}

/// Everything about a request besides its target and body.
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) query: Query,
    pub(crate) form: Form,
    pub(crate) user: User,
    pub(crate) trusted: bool,
    pub(crate) dry_run: bool,
    pub(crate) field_validation: FieldValidation,
    /// Who is recorded in `managedFields`.
    pub(crate) manager: String,
    pub(crate) content_type: String,
    warnings: Mutex<Vec<String>>,
    /// Duplicate fields of the body.
    duplicates: Mutex<Vec<String>>,
}

impl Context {
    pub(crate) fn new(parts: &http::request::Parts) -> Result<Self, ApiError> {
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let options = options_of(&parts.method);
        let trusted = parts.extensions.get::<Trusted>().is_some();
        let dry_run = match query.get("dryRun") {
            None => false,
            Some("All") => true,
            Some(other) => {
                let error = FieldError::unsupported("dryRun", &json!([other]), &[json!("All")]);
                return Err(ApiError::invalid_options(options, &[error]));
            }
        };
        let field_validation = match query.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Strict") => FieldValidation::Strict,
            Some("Ignore") => FieldValidation::Ignore,
            Some(other) => {
                let allowed = ["", "Ignore", "Strict", "Warn"].map(|allowed| json!(allowed));
                let error = FieldError::unsupported("fieldValidation", &json!(other), &allowed);
                return Err(ApiError::invalid_options(options, &[error]));
            }
        };
        let agent = parts.headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or("nodelet");
        let manager = query.get("fieldManager").unwrap_or_else(|| agent.split('/').next().unwrap_or(agent));
        if manager.len() > 128 {
            let error = FieldError::too_long("fieldManager", 128);
            return Err(ApiError::invalid_options(options, &[error]));
        }
        let content_type = parts.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        Ok(Self {
            manager: manager.to_owned(),
            form: form(&parts.headers)?,
            user: parts.extensions.get::<User>().cloned().unwrap_or_else(User::root),
            trusted,
            dry_run,
            field_validation,
            content_type: content_type.split(';').next().unwrap_or_default().trim().to_owned(),
            warnings: Mutex::default(),
            duplicates: Mutex::default(),
            query,
        })
    }

    /// What a watch needs to know of the request that began it.
    pub(crate) fn for_watch(&self) -> Self {
        Self {
            query: self.query.clone(),
            form: self.form,
            user: self.user.clone(),
            trusted: self.trusted,
            dry_run: false,
            field_validation: self.field_validation,
            manager: String::new(),
            content_type: String::new(),
            warnings: Mutex::default(),
            duplicates: Mutex::default(),
        }
    }

    /// Remembers what was wrong with the form of the body.
    pub(crate) fn note(&self, problems: impl Iterator<Item = String>) {
        self.duplicates.lock().unwrap_or_else(|p| p.into_inner()).extend(problems);
    }

    pub(crate) fn noted(&self) -> Vec<String> {
        self.duplicates.lock().unwrap_or_else(|p| p.into_inner()).clone()
    }

    /// Tells the client something that is no error, once.
    pub(crate) fn warn(&self, warning: String) {
        let mut warnings = self.warnings.lock().unwrap_or_else(|p| p.into_inner());
        if !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    pub(crate) fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.warnings.lock().unwrap_or_else(|p| p.into_inner()))
    }
}

/// A resource, or one object of it, or one of its parts.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    pub(crate) resource: &'a Resource,
    /// `None` for cluster-scoped resources and for all namespaces.
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) subresource: Option<String>,
}

/// The decoded segments of a path.
pub(crate) fn segments(path: &str) -> Result<Vec<String>, ApiError> {
    path.split('/')
        .filter(|s| !s.is_empty())
        .map(|s| {
            percent_decode_str(s)
                .decode_utf8()
                .map(Cow::into_owned)
                .map_err(|_| ApiError::bad_request("the path is not valid UTF-8"))
        })
        .collect()
}

impl<'a> Target<'a> {
    /// Finds the target of a path below `/api` or `/apis`; what is not served is a 404.
    pub(crate) fn parse(registry: &'a Registry, segments: &[String]) -> Result<Self, ApiError> {
        let words: Vec<&str> = segments.iter().map(String::as_str).collect();
        let (group, version, rest) = match words.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return Err(ApiError::no_such_path()),
        };
        let find = |plural: &str| registry.find(group, version, plural).ok_or_else(ApiError::no_such_path);
        let (resource, namespace, rest) = match rest {
            // `/namespaces/x/status` is a part of the Namespace, `/namespaces/x/configmaps` is inside it.
            ["namespaces", namespace, plural, rest @ ..]
                if !(matches!(*plural, "status" | "finalize") && group.is_empty()) =>
            {
                (find(plural)?, Some((*namespace).to_owned()), rest)
            }
            [plural, rest @ ..] => (find(plural)?, None, rest),
            [] => return Err(ApiError::no_such_path()),
        };
        let (name, subresource) = match rest {
            [] => (None, None),
            [name] => (Some(*name), None),
            [name, subresource] => (Some(*name), Some(*subresource)),
            _ => return Err(ApiError::no_such_path()),
        };
        let fits = !matches!((resource.namespaced, &namespace, name), (true, None, Some(_)) | (false, Some(_), _));
        if !fits {
            return Err(ApiError::no_such_path());
        }
        Ok(Self { resource, namespace, name: name.map(str::to_owned), subresource: subresource.map(str::to_owned) })
    }
}
