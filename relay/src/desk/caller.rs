//! Who asks, and what they may do.

use backstop_core::report::{cut, escaped};

use super::trouble::{Kind, Trouble};

/// Longest name of a caller, in bytes.
const MAX_NAME: usize = 64;

/// What somebody may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Sees everything but bodies, and may plan.
    Viewer,
    /// May do everything.
    Operator,
}

impl Role {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
        }
    }
}

/// Somebody who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The name that they give; the token proves the role, not the name.
    pub(crate) name: String,
    pub(crate) role: Role,
    /// From where they ask: the console or the API, and which address.
    pub(crate) origin: String,
}

impl Caller {
    /// A caller who gives this name; without one the role stands for it.
    pub(crate) fn named(name: Option<&str>, role: Role) -> Self {
        let name = name.map(|name| cut(&escaped(name.trim()), MAX_NAME)).filter(|name| !name.is_empty());
        let name = name.unwrap_or_else(|| role.as_str().to_owned());
        Self { name, role, origin: "unknown".to_owned() }
    }

    /// The same, who asks from there.
    pub(crate) fn from(mut self, origin: impl Into<String>) -> Self {
        self.origin = origin.into();
        self
    }

    /// Whether they may change things and see bodies.
    pub(crate) fn operates(&self) -> bool {
        self.role == Role::Operator
    }

    /// # Errors
    /// For a viewer.
    pub(super) fn must_operate(&self) -> Result<(), Trouble> {
        if self.operates() {
            return Ok(());
        }
        Err(Trouble::new(Kind::Forbidden, "this needs the operator role", "send the link to an operator"))
    }
}
