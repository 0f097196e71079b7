/** A pipeline or a job that says something our pipelines must not say, or that nobody knows. */
class NotAllowed extends RuntimeException {
    NotAllowed(String message) { super(message) }
}
