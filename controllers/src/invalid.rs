//! An object that cannot be carried out as it is: only an edit helps.

use nodelet_crds::reasons;
use nodelet_crds::unsupported::FieldError;

/// Why, for the condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// A reason constant.
    pub reason: &'static str,
    /// The field, what is wrong with it, and what to do.
    pub message: String,
}

impl Invalid {
    /// A field of the spec is wrong.
    pub fn field(path: impl std::fmt::Display, message: impl std::fmt::Display) -> Self {
        Self { reason: reasons::INVALID_SPEC, message: format!("{path}: {message}") }
    }

    /// Refuses an object that declares what this version does not carry out, naming every field.
    pub fn unsupported(errors: Vec<FieldError>) -> Result<(), Self> {
        if errors.is_empty() {
            return Ok(());
        }
        let message = errors.iter().map(|e| format!("{}: {}", e.path, e.message)).collect::<Vec<_>>().join("; ");
        Err(Self { reason: reasons::UNSUPPORTED_FIELD, message })
    }
}
