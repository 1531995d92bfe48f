//! How a commit shows that its transaction is still the one that was begun for a message.

use backstop_core::inbox::Limits;

/// Opens the cursor. It ends with its transaction, however that ends, and it reads nothing.
pub(crate) const DECLARE: &str = "DECLARE backstop_unit NO SCROLL CURSOR FOR SELECT";

/// What is asked right before COMMIT, in the same string.
///
/// Both fail with 25P02 in a transaction of which a statement has failed, and with a code of their own when it is not
/// the one that was begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Proof {
    /// The cursor of a live message, whose limits are these. Neither opening nor closing it is planned by the server,
    /// which a question for the transaction's id costs a quarter of a whole message.
    Cursor(Limits),
    /// The transaction's id, where it is known anyway.
    Xid(String),
}

impl Proof {
    pub(crate) fn statement(&self) -> String {
        match self {
            Self::Cursor(_) => "CLOSE backstop_unit".to_owned(),
            Self::Xid(xid) => {
                format!("SELECT 1/(pg_current_xact_id_if_assigned() IS NOT DISTINCT FROM '{xid}'::xid8)::int")
            }
        }
    }

    /// Whether the server's answer means that the transaction is another one, or none.
    pub(crate) fn is_refuted_by(code: Option<&str>) -> bool {
        matches!(code, Some("34000" | "22012"))
    }
}
