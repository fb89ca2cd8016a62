//! Locks.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, whatever became of who held the lock before. What this project guards
/// by a mutex is whole after every statement: a panic elsewhere spoils nothing.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
