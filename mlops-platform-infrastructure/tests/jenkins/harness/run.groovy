// Reads {"pipelines": {path: [request, ...]}, "jobs": {path: environment}} on standard input and writes what each of them
// did, as JSON. What is not known, or not allowed, gives an "error" instead.
import groovy.json.JsonOutput
import groovy.json.JsonSlurper
import org.codehaus.groovy.control.CompilationFailedException

Object attempt(Closure work) {
    try {
        return work()
    } catch (NotAllowed | CompilationFailedException | MissingPropertyException | MissingMethodException error) {
        return [error: error.message]
    }
}

Map asked = new JsonSlurper().parseText(System.in.text) as Map
println JsonOutput.toJson([
    pipelines: asked.pipelines.collectEntries { path, requests ->
        Object pipeline = attempt { Model.read(path) }
        [path, requests.collect { request -> pipeline instanceof Map ? pipeline : attempt { new Run(pipeline, request).report() } }]
    },
    jobs: asked.jobs.collectEntries { path, environment -> [path, attempt { Jobs.read(path, environment) }] },
])
