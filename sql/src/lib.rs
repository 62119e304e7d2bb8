//! SQL over tablets: catalog, types, planning through DataFusion, sessions.
